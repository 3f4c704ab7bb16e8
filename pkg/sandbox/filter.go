package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"unsafe"

	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Filter is a compiled profile: the instructions that the kernel runs at every
// system call. It is immutable and safe for concurrent use; nothing of it lives
// outside Go's heap.
type Filter struct {
	name string
	prog []unix.SockFilter
}

// machine is an architecture that profiles are written for.
type machine struct {
	name  string // GOARCH
	arch  seccomp.ScmpArch
	audit uint32 // AUDIT_ARCH_*, as in seccomp_data.arch; linux/audit.h
}

// machines by GOARCH. Both are little endian and pass system calls directly
// (nothing is multiplexed through socketcall or ipc), so a rule in a profile is
// a rule in the filter.
var machines = map[string]machine{
	"amd64": {"amd64", seccomp.ArchAMD64, unix.AUDIT_ARCH_X86_64},
	"arm64": {"arm64", seccomp.ArchARM64, unix.AUDIT_ARCH_AARCH64},
}

// Compile makes a filter of a profile for the architecture of this program. It
// touches no process. It fails on what ParseProfile returned only if libseccomp
// (2.5 or newer) cannot say it, or says it wrongly.
func Compile(p Profile) (*Filter, error) {
	m, ok := machines[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("cannot compile seccomp profile %s: architecture %s is not supported", p.name, runtime.GOARCH)
	}
	return compileFor(p, m)
}

func compileFor(p Profile, m machine) (*Filter, error) {
	prog, err := build(p, m)
	if err != nil {
		return nil, fmt.Errorf("cannot compile seccomp profile %s: %w", p.name, err)
	}
	if err := prove(p, m, prog); err != nil {
		return nil, fmt.Errorf("cannot trust the seccomp filter compiled from profile %s: %w", p.name, err)
	}
	f := &Filter{name: p.name, prog: make([]unix.SockFilter, 0, len(prog))}
	for _, ins := range prog {
		f.prog = append(f.prog, unix.SockFilter{Code: ins.Op, Jt: ins.Jt, Jf: ins.Jf, K: ins.K})
	}
	return f, nil
}

// build lets libseccomp generate the program.
func build(p Profile, m machine) ([]bpf.RawInstruction, error) {
	if p.def == seccomp.ActInvalid {
		return nil, errors.New("it is empty: only what ParseProfile returns can be compiled")
	}
	ctx, err := seccomp.NewFilter(p.def)
	if err != nil {
		return nil, err
	}
	defer ctx.Release()
	if err := configure(ctx, m); err != nil {
		return nil, err
	}
	native := m.name == runtime.GOARCH
	for _, r := range p.rules {
		nr, ok, err := r.number(m)
		if err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		// libseccomp wants the number of the machine it runs on, whatever the
		// program is for, and translates it.
		if !native {
			if nr, err = seccomp.GetSyscallFromName(r.syscall); err != nil {
				return nil, fmt.Errorf("system call %s: %w", r.syscall, err)
			}
		}
		// Exact: libseccomp is to refuse a rule it would have to change.
		if err := ctx.AddRuleConditionalExact(nr, r.action, r.conds); err != nil {
			return nil, fmt.Errorf("system call %s: %w", r.syscall, err)
		}
	}
	return export(ctx)
}

// configure sets what concerns the whole program. The attributes for loading
// (no_new_privs, TSYNC) do not matter: the program is loaded by Filter.Load.
func configure(ctx *seccomp.ScmpFilter, m machine) error {
	if err := ctx.AddArch(m.arch); err != nil {
		return fmt.Errorf("architecture %s: %w", m.arch, err)
	}
	native, err := seccomp.GetNativeArch()
	if err != nil {
		return err
	}
	if native != m.arch { // a new context starts with the native one
		if err := ctx.RemoveArch(native); err != nil {
			return fmt.Errorf("architecture %s: %w", native, err)
		}
	}
	// libseccomp's default kills one thread and leaves the others waiting for it.
	if err := ctx.SetBadArchAction(seccomp.ActKillProcess); err != nil {
		return err
	}
	// A binary tree over the numbers: about eight comparisons for any call
	// instead of up to one for each rule.
	if err := ctx.SetOptimize(2); err != nil {
		return fmt.Errorf("%w: use libseccomp 2.5 or newer", err)
	}
	return ctx.SetRawRC(true)
}

// number resolves a name; false if this architecture does not have the call,
// for which libseccomp has negative numbers.
func number(name string, m machine) (seccomp.ScmpSyscall, bool, error) {
	nr, err := seccomp.GetSyscallFromNameByArch(name, m.arch)
	if err != nil {
		return 0, false, fmt.Errorf("system call %s: %w", name, err)
	}
	return nr, nr >= 0, nil
}

// number resolves the call of a rule; false if the rule is not for this
// architecture.
func (r rule) number(m machine) (seccomp.ScmpSyscall, bool, error) {
	if len(r.arches) > 0 && !slices.Contains(r.arches, m.name) {
		return 0, false, nil
	}
	return number(r.syscall, m)
}

// export reads the program out of libseccomp, which writes it to a file only.
func export(ctx *seccomp.ScmpFilter) ([]bpf.RawInstruction, error) {
	fd, err := unix.MemfdCreate("seccomp", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(fd), "seccomp")
	defer func() { _ = file.Close() }() // memory only, nothing to lose
	if err := ctx.ExportBPF(file); err != nil {
		return nil, fmt.Errorf("libseccomp cannot generate it: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	return decode(data)
}

// decode reads struct sock_filter (linux/filter.h) in the machine's byte order.
func decode(data []byte) ([]bpf.RawInstruction, error) {
	const size = int(unsafe.Sizeof(unix.SockFilter{}))
	n := len(data) / size
	switch {
	case n == 0 || len(data)%size != 0:
		return nil, fmt.Errorf("libseccomp wrote %d bytes, which is no program", len(data))
	case n > unix.BPF_MAXINSNS:
		return nil, fmt.Errorf("it has %d instructions, the kernel takes %d: use fewer conditions", n, unix.BPF_MAXINSNS)
	}
	prog := make([]bpf.RawInstruction, 0, n)
	for b := range slices.Chunk(data, size) {
		prog = append(prog, bpf.RawInstruction{
			Op: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:]),
		})
	}
	return prog, nil
}

// Instructions returns a copy of the program, for a digest or a BPF virtual
// machine. The error says that the filter did not come from Compile.
func (f *Filter) Instructions() ([]bpf.RawInstruction, error) {
	if f == nil || len(f.prog) == 0 {
		return nil, errNoFilter
	}
	prog := make([]bpf.RawInstruction, 0, len(f.prog))
	for _, ins := range f.prog {
		prog = append(prog, bpf.RawInstruction{Op: ins.Code, Jt: ins.Jt, Jf: ins.Jf, K: ins.K})
	}
	return prog, nil
}

var errNoFilter = errors.New("the seccomp filter is empty: use one that Compile returned")
