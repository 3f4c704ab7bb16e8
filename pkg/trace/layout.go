package trace

import (
	"fmt"
	"math"
	"runtime"

	"github.com/cilium/ebpf/btf"
)

// layout is where things are in this kernel's structures, in bytes.
type layout struct {
	parent, tgid, comm, seccomp  int16 // task_struct; the last: seccomp.mode
	compat                       int16 // task_struct: thread_info.status; -1: nothing marks 32-bit calls here
	number, first, second, flags int16 // pt_regs: of the call; its first, second and fifth argument
}

// registers are members of pt_regs; where they are an array, with an index.
type registers struct {
	number, first    string
	second, flags    string
	secondAt, flagAt int16
}

var machines = map[string]registers{
	"amd64": {number: "orig_ax", first: "di", second: "si", flags: "r8"},
	"arm64": {number: "syscallno", first: "orig_x0", second: "regs", flags: "regs", secondAt: 8, flagAt: 4 * 8},
}

func readLayout(spec *btf.Spec) (l layout, err error) {
	r, ok := machines[runtime.GOARCH]
	if !ok {
		return l, fmt.Errorf("no BPF programs for the architecture %s", runtime.GOARCH)
	}
	for _, m := range []struct {
		to   *int16
		of   string
		path []string
	}{
		{&l.parent, "task_struct", []string{"real_parent"}},
		{&l.tgid, "task_struct", []string{"tgid"}},
		{&l.comm, "task_struct", []string{"comm"}},
		{&l.seccomp, "task_struct", []string{"seccomp", "mode"}},
		{&l.number, "pt_regs", []string{r.number}},
		{&l.first, "pt_regs", []string{r.first}},
		{&l.second, "pt_regs", []string{r.second}},
		{&l.flags, "pt_regs", []string{r.flags}},
	} {
		if *m.to, err = offset(spec, m.of, m.path...); err != nil {
			return l, err
		}
	}
	l.second, l.flags, l.compat = l.second+r.secondAt, l.flags+r.flagAt, -1
	if runtime.GOARCH == "amd64" {
		l.compat, err = offset(spec, "task_struct", "thread_info", "status")
	}
	return l, err
}

// offset of a member, by the names that lead to it through structures and through
// unions that have none.
func offset(spec *btf.Spec, name string, path ...string) (int16, error) {
	var s *btf.Struct
	if err := spec.TypeByName(name, &s); err != nil {
		return 0, fmt.Errorf("the kernel's struct %s: %w", name, err)
	}
	at, t := uint32(0), btf.Type(s)
	for _, member := range path {
		off, inner, ok := find(t, member)
		if !ok {
			return 0, fmt.Errorf("the kernel's struct %s has no %s", name, member)
		}
		at, t = at+off, inner
	}
	if at > math.MaxInt16 {
		return 0, fmt.Errorf("%v lies too far into the kernel's struct %s", path, name)
	}
	return int16(at), nil
}

func find(t btf.Type, name string) (off uint32, inner btf.Type, ok bool) {
	var members []btf.Member
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	for _, m := range members {
		if m.Name == name {
			return m.Offset.Bytes(), m.Type, true
		}
		if m.Name == "" {
			if off, inner, ok := find(m.Type, name); ok {
				return m.Offset.Bytes() + off, inner, true
			}
		}
	}
	return 0, nil, false
}
