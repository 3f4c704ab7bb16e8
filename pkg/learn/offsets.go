package learn

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/cilium/ebpf/btf"
)

// offsets are where the running kernel keeps what we read, in bytes.
type offsets struct {
	taskPID, taskTGID, taskMM, taskSignal uint32 // struct task_struct
	argStart, argEnd                      uint32 // struct mm_struct
	signalLive                            uint32 // struct signal_struct
	bprmFilename                          uint32 // struct linux_binprm

	regs uint32    // of 64 bytes of struct pt_regs that have the arguments of a system call
	args [6]uint32 // of each argument in them

	firstArg, number uint32 // in struct pt_regs when a call returns
}

// kernelOffsets reads them from the kernel's own description of its types
// (CONFIG_DEBUG_INFO_BTF; Documentation/bpf/btf.rst).
func kernelOffsets() (offsets, error) {
	var o offsets
	switch runtime.GOARCH {
	case "amd64": // r10 r9 r8 ax cx dx si di; arch/x86/include/asm/ptrace.h
		o.regs, o.args = 56, [6]uint32{56, 48, 40, 0, 16, 8}
		o.firstArg, o.number = 112, 120
	case "arm64": // x0 to x7; arch/arm64/include/uapi/asm/ptrace.h
		o.regs, o.args = 0, [6]uint32{0, 8, 16, 24, 32, 40}
		o.firstArg, o.number = 272, 280
	default:
		return o, fmt.Errorf("architecture %s is not supported", runtime.GOARCH)
	}
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return o, fmt.Errorf("cannot read the kernel's types: %w: it needs CONFIG_DEBUG_INFO_BTF", err)
	}
	var errs []error
	for _, f := range []struct {
		of, name string
		into     *uint32
	}{
		{"task_struct", "pid", &o.taskPID}, {"task_struct", "tgid", &o.taskTGID},
		{"task_struct", "mm", &o.taskMM}, {"task_struct", "signal", &o.taskSignal},
		{"mm_struct", "arg_start", &o.argStart}, {"mm_struct", "arg_end", &o.argEnd},
		{"signal_struct", "live", &o.signalLive}, {"linux_binprm", "filename", &o.bprmFilename},
	} {
		var s *btf.Struct
		if err := spec.TypeByName(f.of, &s); err != nil {
			errs = append(errs, fmt.Errorf("the kernel has no struct %s: %w", f.of, err))
			continue
		}
		at, ok := memberOffset(s.Members, f.name)
		if !ok {
			errs = append(errs, fmt.Errorf("the kernel's struct %s has no %s", f.of, f.name))
		}
		*f.into = at
	}
	return o, errors.Join(errs...)
}

// memberOffset looks into members without a name as well.
func memberOffset(members []btf.Member, name string) (uint32, bool) {
	for _, m := range members {
		if m.Name == name {
			return m.Offset.Bytes(), true
		}
		if m.Name != "" {
			continue
		}
		var inner []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if at, ok := memberOffset(inner, name); ok {
			return m.Offset.Bytes() + at, true
		}
	}
	return 0, false
}
