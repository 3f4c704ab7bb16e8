package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/testbed"
)

// dumped makes this program write the filters of a process: its first argument, before the process.
const dumped = "filters"

const unitPath = "packaging/systemd/pghardend@.service"

//go:embed unit.sh
var unitScript []byte

// unitFilters are those that systemd loads for pghardend@.service before the launch adds the service's own, in their order. A systemd in namespaces
// starts what the unit says but for the program.
func unitFilters(ctx context.Context) (filters [][]unix.SockFilter, err error) {
	unit, err := os.ReadFile(unitPath)
	if err != nil {
		return nil, fmt.Errorf("%w: run it in the top directory of the sources", err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	shared, err := os.MkdirTemp("", "bench-unit")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(shared)) }()
	for name, data := range map[string][]byte{"stand-in.service": standIn(unit), "bench": self, "unit.sh": unitScript} {
		if err := os.WriteFile(filepath.Join(shared, name), data, 0o755); err != nil { //nolint:gosec // it is run
			return nil, err
		}
	}
	said, err := testbed.Booted(ctx, shared, "unit.sh")
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(shared, "filters"))
	if err == nil {
		err = gob.NewDecoder(bytes.NewReader(data)).Decode(&filters)
	}
	if err != nil || len(filters) == 0 {
		return nil, fmt.Errorf("systemd has loaded %d filters: %w\n%s", len(filters), err, said)
	}
	return filters, nil
}

// standIn is the unit with a program that waits, and without what comes from the agent.
func standIn(unit []byte) []byte {
	var out strings.Builder
	for line := range strings.Lines(string(unit)) {
		switch key, _, _ := strings.Cut(strings.TrimSpace(line), "="); key {
		case "ExecStart":
			line = "ExecStart=/usr/bin/sleep infinity\nExecPaths=/usr/bin/sleep\n"
		case "Wants", "After", "AssertPathExists", "StandardOutput", "LoadCredential", "Slice":
			continue
		}
		out.WriteString(line)
	}
	return []byte(out.String())
}

// dump writes the filters of a process, as root with a tracer's rights (PTRACE_SECCOMP_GET_FILTER, ptrace(2)).
func dump(process string, out io.Writer) int {
	pid, err := strconv.Atoi(process)
	var filters [][]unix.SockFilter
	if err == nil {
		filters, err = filtersOf(pid)
	}
	if err == nil {
		err = gob.NewEncoder(out).Encode(filters)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: cannot read the filters of process %s: %v\n", process, err)
		return 1
	}
	return 0
}

func filtersOf(pid int) (filters [][]unix.SockFilter, err error) {
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	if err := unix.PtraceAttach(pid); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.PtraceDetach(pid)) }()
	if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
		return nil, err
	}
	for i := uintptr(0); ; i++ {
		n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), i, 0, 0, 0)
		if errno == unix.ENOENT {
			return filters, nil
		}
		if errno != 0 || n == 0 {
			return nil, fmt.Errorf("filter %d, %d instructions: %w", i, n, errno)
		}
		program := make([]unix.SockFilter, n)
		if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), i, uintptr(unsafe.Pointer(&program[0])), 0, 0); errno != 0 {
			return nil, fmt.Errorf("filter %d: %w", i, errno)
		}
		filters = append(filters, program)
	}
}

// loadAll loads them on the calling thread in the order in which they were.
func loadAll(filters [][]unix.SockFilter) error {
	for i, program := range filters { // the first that was loaded has index 0, see pkg/sandbox
		if err := loadProgram(program); err != nil {
			return fmt.Errorf("filter %d: %w", i, err)
		}
	}
	return nil
}
