package mac

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Probe tries acts of which the rules allow none, before and after the thread is
// restricted. What works before, and afterwards fails as Landlock makes it fail,
// is enforced. What does not work before (there is no /tmp, say, or the kernel does
// not know the flag of execveat) proves nothing and is left out.
type Probe struct {
	trials []trial
	socket int // an abstract Unix socket from before
	name   unix.Sockaddr
}

// trial is one act.
type trial struct {
	feature string
	what    string
	want    error // Landlock's answer
	try     func() error
}

// NewProbe sees what works on the calling thread, as it is. inside is a path that
// the rules let the service read, "" for none.
func NewProbe(p Plan, inside string) *Probe {
	b := &Probe{socket: -1}
	all := []trial{
		{featureFiles.Name, "reading the root directory", unix.EACCES, func() error { return try("/", unix.O_RDONLY|unix.O_DIRECTORY) }},
	}
	for _, dir := range []string{"/tmp", "/var/tmp"} {
		if !p.changes(dir) {
			all = append(all, trial{featureFiles.Name, "making a file in " + dir, unix.EACCES,
				func() error { return try(dir, unix.O_TMPFILE|unix.O_WRONLY) }})
		}
	}
	// The agent itself is no helper of anybody's.
	all = append(all, trial{featureFiles.Name, "executing another program", unix.EACCES, tryExecute})
	if p.net&unix.LANDLOCK_ACCESS_NET_BIND_TCP != 0 {
		port := p.Set.Bind.other()
		all = append(all, trial{featureBind.Name, fmt.Sprintf("binding TCP port %d", port), unix.EACCES, func() error { return tryBind(port) }})
	}
	if p.scoped&unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET != 0 && b.listen() == nil {
		all = append(all, trial{featureAbstract.Name, "an abstract socket from outside", unix.EPERM, b.tryAbstract})
	}
	for _, t := range all {
		if t.try() == nil {
			b.trials = append(b.trials, t)
		}
	}
	// There is no way to connect that has no effect if it works, so it is tried
	// afterwards only: no address of this machine answers EACCES by itself.
	if p.net&unix.LANDLOCK_ACCESS_NET_CONNECT_TCP != 0 {
		port := p.Set.Connect.other()
		b.trials = append(b.trials, trial{featureConnect.Name, fmt.Sprintf("connecting to TCP port %d", port), unix.EACCES, func() error { return tryConnect(port) }})
	}
	if inside != "" {
		b.trials = append(b.trials, trial{"", "reading " + inside, nil, func() error { return try(inside, unix.O_RDONLY) }})
	}
	return b
}

// changes says whether a rule allows to make files at a path or around it.
func (p Plan) changes(path string) bool {
	for _, r := range p.Set.Rules {
		if r.Access&Write != 0 && (Beneath(path, r.Path) || Beneath(r.Path, path)) {
			return true
		}
	}
	return false
}

// other is a port that is not allowed and that any user may bind.
func (p Ports) other() uint16 {
	for port := uint16(40001); ; port++ {
		taken := false
		for _, a := range p.Allowed {
			taken = taken || a == port
		}
		if !taken {
			return port
		}
	}
}

// Check repeats the acts on the restricted thread and returns what was seen to be
// denied, by feature, each once. The error says what the kernel let pass, or what
// it denies of what should be allowed.
func (b *Probe) Check() (features []string, err error) {
	var errs []error
	for _, t := range b.trials {
		got := t.try()
		switch {
		case !errors.Is(got, t.want) && t.want != nil:
			errs = append(errs, fmt.Errorf("%s should be denied with %q and gives %q", t.what, answer(t.want), answer(got)))
		case t.want == nil && got != nil:
			errs = append(errs, fmt.Errorf("%s should be allowed: %w", t.what, got))
		case t.feature != "" && (len(features) == 0 || features[len(features)-1] != t.feature):
			features = append(features, t.feature)
		}
	}
	if len(features) == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("nothing could be probed: no act outside of the rules worked before they were enforced"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("the Landlock rules do not hold as they should: %w", err)
	}
	return features, nil
}

func answer(err error) string {
	if err == nil {
		return "success"
	}
	return err.Error()
}

// Close gives the probe's descriptor back.
func (b *Probe) Close() {
	if b.socket >= 0 {
		_ = unix.Close(b.socket) // nothing is in it
		b.socket = -1
	}
}

func try(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// executeCheck is AT_EXECVE_CHECK (Linux 6.14): what execve would say. Older
// kernels refuse the flag, so the probe is left out.
const executeCheck = 0x10000

func tryExecute() error {
	// execveat wants a list of arguments all the same.
	path, err := unix.BytePtrFromString("/proc/self/exe")
	if err != nil {
		return err
	}
	none := [1]uintptr{}
	at := unix.AT_FDCWD // a constant would not convert
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(at), uintptr(unsafe.Pointer(path)),
		uintptr(unsafe.Pointer(&none)), uintptr(unsafe.Pointer(&none)), executeCheck, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func tryBind(port uint16) error {
	return withSocket(unix.AF_INET, unix.SOCK_STREAM, func(fd int) error {
		return unix.Bind(fd, &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}})
	})
}

func tryConnect(port uint16) error {
	return withSocket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, func(fd int) error {
		return unix.Connect(fd, &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}})
	})
}

func withSocket(family, kind int, act func(fd int) error) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(act(fd), unix.Close(fd))
}

// listen makes the abstract socket that is outside of the domain to come; the
// kernel chooses its name, unix(7).
func (b *Probe) listen() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	b.socket = fd
	if err := autobind(fd); err != nil {
		return err
	}
	b.name, err = unix.Getsockname(fd)
	if err == nil && !strings.HasPrefix(nameOf(b.name), "@") {
		err = os.ErrInvalid
	}
	return err
}

// autobind is bind(2) with nothing but the family.
func autobind(fd int) error {
	family := uint16(unix.AF_UNIX)
	_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&family)), unsafe.Sizeof(family))
	if errno != 0 {
		return errno
	}
	return nil
}

func nameOf(sa unix.Sockaddr) string {
	if u, ok := sa.(*unix.SockaddrUnix); ok {
		return u.Name
	}
	return ""
}

func (b *Probe) tryAbstract() error {
	return withSocket(unix.AF_UNIX, unix.SOCK_DGRAM, func(fd int) error { return unix.Connect(fd, b.name) })
}
