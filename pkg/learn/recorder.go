package learn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
)

// ErrUnsupported is wrapped by errors of Open that say why nothing can be
// recorded on this machine.
var ErrUnsupported = errors.New("the system calls of other processes cannot be recorded here")

// Recorder watches the processes of one service. Close it.
//
// Linux 5.12 is needed (ring buffers 5.8, counts of missed runs 5.12), with
// CONFIG_DEBUG_INFO_BTF, and root with CAP_BPF and CAP_PERFMON in the initial pid
// namespace.
type Recorder struct {
	maps     kernelMaps
	programs []*ebpf.Program
	links    []link.Link
	reader   *ringbuf.Reader
}

// initialPIDNamespace is PROC_PID_INIT_INO, include/linux/proc_ns.h.
const initialPIDNamespace = "pid:[4026531836]"

// Open attaches to the kernel. From now on every process that runs the target's
// program as its user is recorded, and with Enroll those that run already.
func Open(ctx context.Context, t Target) (*Recorder, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if ns, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns != initialPIDNamespace {
		return nil, fmt.Errorf("%w: process ids are those of a container (%s): run it on the host", ErrUnsupported, ns)
	}
	r := &Recorder{}
	if err := r.attach(t); err != nil {
		r.Close()
		return nil, fmt.Errorf("%w: %w: it takes root with CAP_BPF and CAP_PERFMON, and Linux 5.12 with CONFIG_BPF_SYSCALL, "+
			"CONFIG_BPF_EVENTS and CONFIG_DEBUG_INFO_BTF, not locked down", ErrUnsupported, err)
	}
	return r, nil
}

func (r *Recorder) attach(t Target) error {
	o, err := kernelOffsets()
	if err != nil {
		return err
	}
	if r.maps, err = newMaps(); err != nil {
		return err
	}
	if err := r.fillRules(t); err != nil {
		return err
	}
	if r.reader, err = ringbuf.NewReader(r.maps.reports); err != nil {
		return fmt.Errorf("cannot read the BPF ring buffer: %w", err)
	}
	specs := programs(r.maps, o, t)
	// Forks come first: who becomes a member later has no child that was missed.
	for _, i := range []int{programFork, programExit, programEnter, programReturn, programExec} {
		spec := specs[i]
		p, err := ebpf.NewProgram(spec)
		if err != nil {
			return fmt.Errorf("cannot load the BPF program for %s: %w", spec.Name, err)
		}
		r.programs = append(r.programs, p)
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: spec.Name, Program: p})
		if err != nil {
			return fmt.Errorf("cannot attach to %s: %w", spec.Name, err)
		}
		r.links = append(r.links, l)
	}
	return nil
}

// fillRules is done before anything is attached.
func (r *Recorder) fillRules(t Target) error {
	rules := map[string]rule{"bind": {}, "connect": {}, "exit_group": {}, "fchdir": {}}
	for name := range pathCalls {
		rules[name] = rule{}
	}
	for name := range rules {
		rules[name] = rule{flags: ruleArgs | ruleLooksAt}
	}
	for name, x := range argumentRules {
		rules[name] = x
	}
	for name, x := range rules {
		number, ok := t.Number(name)
		if !ok || number < 0 || number >= maxNumber {
			continue
		}
		value := [4]uint64{x.mask[0], x.mask[1], x.mask[2], x.flags}
		if err := r.maps.rules.Put(uint32(number), value); err != nil {
			return fmt.Errorf("cannot fill the BPF map of rules: %w", err)
		}
	}
	return nil
}

// Close detaches. What was not read is lost.
func (r *Recorder) Close() {
	r.Detach()
	for _, p := range r.programs {
		_ = p.Close()
	}
	if r.reader != nil {
		_ = r.reader.Close()
	}
	r.maps.close()
}

// Enroll makes a live process a member, if it is none, and returns its run.
func (r *Recorder) Enroll(ctx context.Context, pid int) (run uint64, added bool, err error) {
	if err := ctx.Err(); err != nil {
		return 0, false, err
	}
	var member [memberSize / 8]uint64
	member[0] = runOf(time.Now(), pid)
	err = r.maps.members.Update(uint32(pid), member, ebpf.UpdateNoExist) //nolint:gosec // a pid
	if errors.Is(err, ebpf.ErrKeyExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("cannot record process %d: %w", pid, err)
	}
	return member[0], true, nil
}

// runOf is like newRun's number and cannot be equal to one: microseconds since
// 1970 are more than since boot, in the 42 bits that are left.
func runOf(now time.Time, pid int) uint64 {
	return uint64(now.UnixMicro())<<22 | uint64(pid)&(1<<22-1) //nolint:gosec // positive, and any number will do
}

// remove forgets a process that is of another service.
func (r *Recorder) remove(pid uint32) { _ = r.maps.members.Delete(pid) }

// Lost is how many reports did not arrive, at least.
func (r *Recorder) Lost() (uint64, error) {
	var sum uint64
	for i := range uint32(counterCount) {
		var n uint64
		if err := r.maps.counters.Lookup(i, &n); err != nil {
			return 0, fmt.Errorf("cannot read what was lost: %w", err)
		}
		sum += n
	}
	for _, p := range r.programs {
		stats, err := p.Stats()
		if err != nil {
			return 0, fmt.Errorf("cannot read what was lost: %w", err)
		}
		sum += stats.RecursionMisses
	}
	return sum, nil
}

// readPatience is how long Read goes on.
const readPatience = 50 * time.Millisecond

// Read gives the reports of the next moment to take and counts them. While it is
// not called, the kernel keeps what ringSize has room for.
func (r *Recorder) Read(ctx context.Context, take func(Report)) (int, error) {
	var record ringbuf.Record
	until := time.Now().Add(readPatience)
	r.reader.SetDeadline(until)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		if n&0xff == 0xff && time.Now().After(until) {
			return n, nil
		}
		err := r.reader.ReadInto(&record)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("cannot read the BPF ring buffer: %w", err)
		}
		if report, ok := parseReport(record.RawSample); ok {
			take(report)
		}
	}
}

// Detach ends the recording. What was recorded can still be read.
func (r *Recorder) Detach() {
	for _, l := range r.links {
		_ = l.Close() // nothing was written
	}
	r.links = nil
}
