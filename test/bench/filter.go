package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unsafe"

	docker "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/sandbox"
	"github.com/pghardend/pghardend/policies"
)

const (
	filterRounds = 151    // of which the median counts
	filterCalls  = 20_000 // in each round
)

// A call is made over and over; it ends in the kernel as early as it can.
type call struct {
	name string
	nr   uintptr
	args [3]uintptr
}

var someName = [...]byte{'x', 0}

// The filters have conditions on mprotect, and those of a unit on openat as well.
var calls = []call{
	{"lseek", unix.SYS_LSEEK, [3]uintptr{^uintptr(0), 0, 0}},
	{"openat", unix.SYS_OPENAT, [3]uintptr{^uintptr(0), uintptr(unsafe.Pointer(&someName[0])), 0}},
	{"mprotect", unix.SYS_MPROTECT, [3]uintptr{0, 0, unix.PROT_READ}},
}

// A contender is a thread under a filter.
type contender struct {
	name  string
	load  func() error // on the calling thread
	work  chan call
	times chan time.Duration
	all   map[string][]float64 // ns for each call
}

// benchFilter compares what filters cost a system call. Each has a thread of its own; they take turns.
func benchFilter(ctx context.Context, out io.Writer, _ *testbed.Host) error {
	list, err := contenders(ctx)
	if err != nil {
		return err
	}
	for _, c := range list {
		if err := c.start(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	for range filterRounds {
		for _, call := range calls {
			for _, c := range list {
				c.all[call.name] = append(c.all[call.name], c.time(call))
			}
		}
	}
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "a system call, median of %d", filterRounds)
	for _, call := range calls {
		fmt.Fprintf(w, "\t%s", call.name)
	}
	fmt.Fprint(w, "\t\n")
	for _, c := range list {
		fmt.Fprintf(w, "%s", c.name)
		for _, call := range calls {
			all, none := c.all[call.name], list[0].all[call.name]
			var more []float64 // round by round, so that what the machine does besides hits both
			for i := range all {
				more = append(more, all[i]-none[i])
			}
			fmt.Fprintf(w, "\t%.0f ns (%+.0f)", medianOf(all), medianOf(more))
		}
		fmt.Fprint(w, "\t\n")
	}
	return errors.Join(w.Flush(), benchTrace(ctx, out, list[:2]))
}

// time is that of a call in one round, in ns.
func (c *contender) time(call call) float64 {
	c.work <- call
	return float64((<-c.times).Nanoseconds()) / filterCalls
}

// start loads the filter on a thread that stays: what Go does when a thread ends is more than the filters allow.
func (c *contender) start() error {
	c.work, c.times, c.all = make(chan call), make(chan time.Duration), map[string][]float64{}
	loaded := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := c.load()
		loaded <- err
		if err != nil {
			return
		}
		for call := range c.work {
			began := time.Now()
			for range filterCalls {
				_, _, _ = unix.RawSyscall(call.nr, call.args[0], call.args[1], call.args[2])
			}
			c.times <- time.Since(began)
		}
	}()
	return <-loaded
}

func contenders(ctx context.Context) ([]*contender, error) {
	list := []*contender{{name: "no filter", load: func() error { return nil }}}
	unit, err := unitFilters(ctx)
	if err != nil {
		return nil, fmt.Errorf("the unit of a service: %w", err)
	}
	for _, name := range []string{"postgres", "pgpool"} {
		data, err := policies.FS.ReadFile("seccomp/" + name + ".json")
		if err != nil {
			return nil, err
		}
		p, err := sandbox.ParseProfile(name, data)
		if err != nil {
			return nil, err
		}
		f, err := sandbox.Compile(p)
		if err != nil {
			return nil, err
		}
		list = append(list, &contender{name: "pghardend, " + name, load: func() error {
			return errors.Join(sandbox.NoNewPrivs(), f.Load())
		}})
	}
	profile, err := docker.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	if err != nil {
		return nil, err
	}
	service, err := systemService(ctx)
	if err != nil {
		return nil, err
	}
	postgres := list[1].load
	return append(list,
		&contender{name: fmt.Sprintf("in pghardend@.service, %d of systemd's too", len(unit)), load: func() error {
			return errors.Join(loadAll(unit), postgres())
		}},
		&contender{name: "Docker's default", load: func() error { return loadSpec(profile) }},
		&contender{name: "systemd's @system-service", load: func() error { return loadSpec(service) }}), nil
}

// systemService asks systemd what is in the set.
func systemService(ctx context.Context) (*specs.LinuxSeccomp, error) {
	out, err := exec.CommandContext(ctx, "systemd-analyze", "syscall-filter").Output()
	if err != nil {
		return nil, fmt.Errorf("cannot ask systemd for its sets: %w", err)
	}
	sets := map[string][]string{}
	var set string
	for line := range strings.Lines(string(out)) {
		word := strings.TrimSpace(line)
		switch {
		case word == "" || word[0] == '#':
		case line[0] == '@':
			set = word
		default:
			sets[set] = append(sets[set], word)
		}
	}
	names := members(sets, "@system-service")
	if len(names) < 100 {
		return nil, fmt.Errorf("systemd's @system-service has %d system calls only", len(names))
	}
	return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: names, Action: specs.ActAllow}}}, nil
}

// members lists the calls of a set and of the sets in it.
func members(sets map[string][]string, set string) []string {
	var names []string
	for _, word := range sets[set] {
		if word[0] == '@' {
			names = append(names, members(sets, word)...)
		} else {
			names = append(names, word)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

var operators = map[specs.LinuxSeccompOperator]seccomp.ScmpCompareOp{
	specs.OpNotEqual: seccomp.CompareNotEqual, specs.OpLessThan: seccomp.CompareLess, specs.OpLessEqual: seccomp.CompareLessOrEqual,
	specs.OpEqualTo: seccomp.CompareEqual, specs.OpGreaterEqual: seccomp.CompareGreaterEqual, specs.OpGreaterThan: seccomp.CompareGreater,
	specs.OpMaskedEqual: seccomp.CompareMaskedEqual,
}

// loadSpec loads a filter as runc and systemd do: without an optimised order, and with calls of other architectures refused.
func loadSpec(spec *specs.LinuxSeccomp) error {
	ctx, err := seccomp.NewFilter(seccomp.ActErrno.SetReturnCode(int16(unix.EPERM)))
	if err != nil {
		return err
	}
	defer ctx.Release()
	for _, s := range spec.Syscalls {
		if s.Action != specs.ActAllow {
			continue // the default, but for another error
		}
		for _, name := range s.Names {
			nr, err := seccomp.GetSyscallFromName(name)
			if err != nil || nr < 0 {
				continue // newer than libseccomp, or another architecture's
			}
			var conds []seccomp.ScmpCondition
			for _, a := range s.Args {
				conds = append(conds, seccomp.ScmpCondition{Argument: a.Index, Op: operators[a.Op], Operand1: a.Value, Operand2: a.ValueTwo})
			}
			if err := ctx.AddRuleConditional(nr, seccomp.ActAllow, conds); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return loadThread(ctx)
}

// loadThread is ctx.Load for the calling thread alone.
func loadThread(ctx *seccomp.ScmpFilter) error {
	file, err := os.CreateTemp("", "filter")
	if err != nil {
		return err
	}
	defer func() { _ = errors.Join(file.Close(), os.Remove(file.Name())) }() // nothing is to be kept
	if err := ctx.ExportBPF(file); err != nil {
		return err
	}
	data, err := os.ReadFile(file.Name())
	if err != nil {
		return err
	}
	var program []unix.SockFilter
	for b := range slices.Chunk(data, 8) { // struct sock_filter
		program = append(program, unix.SockFilter{
			Code: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:]),
		})
	}
	return loadProgram(program)
}

func loadProgram(program []unix.SockFilter) error {
	if err := sandbox.NoNewPrivs(); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]} //nolint:gosec // libseccomp keeps to the kernel's bound
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(program)
	if errno != 0 {
		return errno
	}
	return nil
}
