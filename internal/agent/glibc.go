package agent

import (
	"context"
	"debug/elf"
	"strconv"
	"strings"
)

// The first glibc whose stat() is a symbol of its own, and the system call newfstatat.
// Programs built before ask for the call stat, also where a newer glibc runs them (sysdeps/unix/sysv/linux/xstat.c).
const (
	glibcMajor = 2
	glibcMinor = 33
)

// linkage is what a program's file says of how it wants to be loaded.
type linkage struct {
	oldGlibc bool // it needs no version of glibc that has a symbol stat
	origin   bool // it looks for libraries relative to where it is ($ORIGIN, ld.so(8))
}

// readLinkage is the zero value for what is no such program (a script, a static one,
// musl's, none at all).
func readLinkage(ctx context.Context, program string) linkage {
	if ctx.Err() != nil {
		return linkage{}
	}
	f, err := elf.Open(program)
	if err != nil {
		return linkage{}
	}
	defer func() { _ = f.Close() }() // nothing was written
	return linkage{oldGlibc: builtForOldGlibc(f), origin: usesOrigin(f)}
}

func usesOrigin(f *elf.File) bool {
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		paths, err := f.DynString(tag)
		if err == nil && strings.Contains(strings.Join(paths, ":"), "ORIGIN") {
			return true
		}
	}
	return false
}

func builtForOldGlibc(f *elf.File) bool {
	needs, err := f.DynamicVersionNeeds()
	if err != nil {
		return false
	}
	found := false
	for _, library := range needs {
		for _, version := range library.Needs {
			name, ok := strings.CutPrefix(version.Dep, "GLIBC_")
			if !ok {
				continue
			}
			found = true
			if !glibcBefore(name) {
				return false
			}
		}
	}
	return found
}

// glibcBefore is false for what it cannot read (GLIBC_PRIVATE, GLIBC_ABI_DT_RELR, which is of 2.36).
func glibcBefore(name string) bool {
	parts := strings.Split(name, ".")
	if len(parts) < 2 {
		return false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return err1 == nil && err2 == nil && (major < glibcMajor || major == glibcMajor && minor < glibcMinor)
}
