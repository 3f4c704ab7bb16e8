package trace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

// UnsupportedError says why this kernel, or this process' rights, do not do.
type UnsupportedError struct{ Err error }

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("BPF programs cannot be used: %v%s", e.Err, hint(e.Err))
}

// Unwrap returns the cause.
func (e *UnsupportedError) Unwrap() error { return e.Err }

func hint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "; that needs CAP_BPF and CAP_PERFMON, and no lockdown for confidentiality"
	case errors.Is(err, unix.E2BIG):
		return "; too many programs are attached, by other agents"
	case errors.Is(err, btf.ErrNotFound), errors.Is(err, btf.ErrNotSupported), errors.Is(err, os.ErrNotExist), errors.Is(err, ebpf.ErrNotSupported):
		return "; that needs Linux 5.12 with CONFIG_DEBUG_INFO_BTF"
	}
	return ""
}

// Members are processes that belong to something, each with what it does by then or
// later start. Several goroutines may use it.
type Members struct {
	tasks  *ebpf.Map
	seeds  *ebpf.Map
	losses *ebpf.Map
	hooks  []link.Link
}

// OpenMembers begins with nobody. Linux 5.12, CAP_BPF and CAP_PERFMON.
func OpenMembers(ctx context.Context) (*Members, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m := &Members{}
	if err := m.open(); err != nil {
		return nil, &UnsupportedError{errors.Join(err, m.Close())}
	}
	return m, nil
}

func (m *Members) open() (err error) {
	m.tasks, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "pgh_members", Type: ebpf.TaskStorage, KeySize: 4, ValueSize: memberSize, Flags: unix.BPF_F_NO_PREALLOC,
		Key: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}, Value: &btf.Int{Name: "u32", Size: memberSize},
	})
	if err != nil {
		return err
	}
	m.losses, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pgh_losses", Type: ebpf.Array, KeySize: 4, ValueSize: 8 * losses, MaxEntries: 1})
	if err != nil {
		return err
	}
	m.seeds, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pgh_seeds", Type: ebpf.LRUHash, KeySize: 4, ValueSize: seedSize, MaxEntries: maxSeeds})
	if err != nil {
		return err
	}
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	l, err := readLayout(spec)
	if err != nil {
		return err
	}
	for _, spec := range []*ebpf.ProgramSpec{
		forkProgram(m.tasks.FD(), m.losses.FD()), execProgram(m.tasks.FD(), m.seeds.FD(), m.losses.FD(), l),
	} {
		hook, err := attach(spec)
		if err != nil {
			return err
		}
		m.hooks = append(m.hooks, hook)
	}
	return nil
}

// attach loads a program. What is attached stays so for as long as the link does.
func attach(spec *ebpf.ProgramSpec) (link.Link, error) {
	program, err := ebpf.NewProgramWithOptions(spec, ebpf.ProgramOptions{})
	if err != nil {
		return nil, fmt.Errorf("program for %s: %w", spec.AttachTo, err)
	}
	defer func() { _ = program.Close() }() // the link holds it
	l, err := link.AttachTracing(link.TracingOptions{Program: program, AttachType: spec.AttachType})
	if err != nil {
		return nil, fmt.Errorf("program for %s: %w", spec.AttachTo, err)
	}
	return l, nil
}

// Follow has a process belong to service, with all that it starts from now on. What
// it has started before is to be told of as well. The error is os.ErrProcessDone if it has ended.
func (m *Members) Follow(ctx context.Context, pid int, service uint32) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := m.join(pid, 0, service)
	if threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)); err == nil && len(threads) > 1 {
		err = m.seed(pid, service)
		for _, t := range threads {
			if tid, numErr := strconv.Atoi(t.Name()); numErr == nil && tid != pid {
				_ = m.join(tid, pidfdThread, service) // it has ended, or the kernel is older: seeds do for who executes
			}
		}
	}
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, ebpf.ErrKeyNotExist):
		return os.ErrProcessDone
	case err != nil:
		return fmt.Errorf("cannot follow process %d: %w", pid, err)
	}
	return nil
}

// pidfdThread is PIDFD_THREAD, Linux 6.9.
const pidfdThread = unix.O_EXCL

// maxSeeds is more than are launched at a time.
const maxSeeds = 256

func (m *Members) join(pid, flags int, service uint32) error {
	fd, err := unix.PidfdOpen(pid, flags)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // only looked at
	return m.tasks.Put(int32(fd), service)
}

func (m *Members) seed(pid int, service uint32) error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	value := make([]byte, seedSize)
	binary.NativeEndian.PutUint32(value, service)
	binary.NativeEndian.PutUint64(value[seedAt:], uint64(now.Nano()))
	return m.seeds.Put(uint32(pid), value)
}

// Lost is how many events were not reported, and how many children are not followed.
func (m *Members) Lost() (events, children uint64, err error) {
	var value [losses]uint64
	if err := m.losses.Lookup(uint32(0), &value); err != nil {
		return 0, 0, fmt.Errorf("cannot read what was lost: %w", err)
	}
	return value[lostEvents], value[lostMembers], nil
}

// Close ends it; nobody is a member any more.
func (m *Members) Close() error {
	var errs []error
	for _, h := range m.hooks {
		errs = append(errs, h.Close())
	}
	return errors.Join(append(errs, m.tasks.Close(), m.seeds.Close(), m.losses.Close())...) // of nil as well
}
