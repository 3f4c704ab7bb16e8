package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// A service without helpers executes nothing after the launch, and its filter says
// so. The launch stage is under that filter too when it becomes the program. So
// the filter lets execve(2) pass where the path lies in page 0, which needs
// CAP_SYS_RAWIO to map: the stage does that while it still has the capability,
// and execve takes the page away with the rest of its memory.

// gateAddress is where the path is. 0 would be no path at all.
const gateAddress = 16

// gatePage is what mmap_min_addr has to keep back.
const gatePage = 4096

// featureOpenExec lifts the gate.
const featureOpenExec = "open_exec"

// minAddrFile has the lowest address that a process without CAP_SYS_RAWIO can map, proc_sys_vm(5).
const minAddrFile = "/proc/sys/vm/mmap_min_addr"

// execGate is the way of the launch stage through the filter.
type execGate struct {
	program string
	service string
	open    bool // the page is mapped
	probe   bool // a refusal to map it once more is the kernel's own
}

// checkGate is nil for a service that may execute programs, or that no filter is loaded for.
func checkGate(ctx context.Context, spec Spec, self sandbox.Status, complains bool) (*execGate, error) {
	limit := spec.Seccomp.ExecBelow()
	if limit == 0 || complains {
		return nil, nil
	}
	lowest, err := readMinAddr(ctx)
	if err != nil {
		return nil, err
	}
	if err := gateFault(spec, limit, lowest, self.Eff); err != nil {
		return nil, fmt.Errorf("%w; %s", err, withoutGate(spec.Service))
	}
	return &execGate{program: spec.Command[0], service: spec.Service, probe: self.Seccomp == 0}, nil
}

func withoutGate(service string) string {
	return fmt.Sprintf("or add %s to services.%s.features to start without the exec gate", featureOpenExec, service)
}

// gateFault says what would leave the gate open to others, or shut to the launch stage.
func gateFault(spec Spec, limit, lowest uint64, have sandbox.CapSet) error {
	rawIO := capability(unix.CAP_SYS_RAWIO)
	switch {
	case limit > gatePage || limit <= gateAddress:
		return fmt.Errorf("the seccomp profile lets execve pass below address %d: use %d", limit, gatePage)
	case lowest < gatePage:
		return fmt.Errorf("vm.mmap_min_addr is %d, so every process can map page 0, and the service could execute programs: "+
			"set it to 65536, the default (/etc/sysctl.d)", lowest)
	case spec.Capabilities&rawIO != 0:
		return errors.New("CAP_SYS_RAWIO lets the service map page 0, and so execute programs: take it out of capabilities")
	case have&rawIO == 0:
		return errors.New("mapping page 0 needs CAP_SYS_RAWIO: add it to what starts this process (systemd: CapabilityBoundingSet=)")
	case len(spec.Command[0]) >= gatePage-gateAddress:
		return fmt.Errorf("the path of the program has %d bytes, and has to fit into a page: use a shorter one", len(spec.Command[0]))
	}
	return nil
}

func readMinAddr(ctx context.Context) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	data, err := os.ReadFile(minAddrFile)
	if err != nil {
		return 0, fmt.Errorf("cannot tell who can map page 0: %w", err)
	}
	lowest, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("cannot tell who can map page 0: %s: %w", minAddrFile, err)
	}
	return lowest, nil
}

// mapPage puts the path into page 0. It is moved there, since Go's runtime takes
// pointers into that page for mistakes.
func (g *execGate) mapPage() error {
	if g == nil {
		return nil
	}
	// execve(2) past package syscall leaves out two things that this does for it. The
	// limit of open files:
	if err := restoreNofile(); err != nil {
		return err
	}
	// and threads that the runtime just makes: the kernel refuses them while one that
	// shares its working directory executes (in_exec, fs/exec.c), and the runtime dies of that.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("cannot part the thread's directories from the others': %w", err)
	}
	size := os.Getpagesize()
	page, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("cannot make a page for the path of the program: %w", err)
	}
	copy(page[gateAddress:], g.program) // the rest is zeros
	if err := unix.Mprotect(page, unix.PROT_READ); err != nil {
		return fmt.Errorf("cannot protect the path of the program: %w", err)
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_MREMAP, uintptr(unsafe.Pointer(&page[0])), uintptr(size), uintptr(size),
		unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, 0, 0)
	if errno != 0 {
		return fmt.Errorf("cannot map page 0: %w: %s; %s", errno, mapHint(errno), withoutGate(g.service))
	}
	g.open = true
	return nil
}

func mapHint(errno unix.Errno) string {
	if errno == unix.EACCES {
		return "SELinux has to allow it (memprotect mmap_zero for the domain of what starts the service)"
	}
	return "it needs CAP_SYS_RAWIO in the first user namespace, which a container may not have"
}

// prove asks the kernel whether this thread could map the page once more, now that
// it has the service's capabilities. Where it could the answer would be EEXIST.
func (g *execGate) prove() error {
	if g == nil || !g.open {
		return nil
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_MMAP, 0, gatePage, unix.PROT_READ,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE, ^uintptr(0), 0)
	if errno != unix.EPERM && errno != unix.EACCES {
		return fmt.Errorf("the service could map page 0 and execute programs: mmap(2) gave %q instead of a refusal: look at vm.mmap_min_addr", errno.Error())
	}
	return nil
}

// execute is execve(2) with the path in page 0.
func (g *execGate) execute(spec Spec, env []string) error {
	argv, err := syscall.SlicePtrFromStrings(spec.Command)
	if err != nil {
		return err
	}
	envv, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	_, _, errno := unix.RawSyscall(unix.SYS_EXECVE, gateAddress, uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])))
	runtime.KeepAlive(argv)
	runtime.KeepAlive(envv)
	return errno
}

// gateFinding says of a process under the gate whether it holds: its filter and its
// capabilities are looked at by others.
func gateFinding(ctx context.Context, spec Spec, s sandbox.Status) ([]Finding, error) {
	pid := s.PID
	if start, _, err := findStart(ctx, spec, s); err != nil || start.Launcher != "" {
		return ungated(spec, pid), err
	}
	if spec.Seccomp.ExecBelow() == 0 {
		return nil, nil
	}
	lowest, err := readMinAddr(ctx)
	if err != nil {
		return nil, err
	}
	f := finding(pid, layerSeccomp, "vm.mmap_min_addr", fmt.Sprintf("at least %d, for the exec gate", gatePage), strconv.FormatUint(lowest, 10))
	f.OK = lowest >= gatePage
	return []Finding{f}, nil
}
