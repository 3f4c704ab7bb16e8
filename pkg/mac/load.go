package mac

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ABI asks the kernel for its Landlock version. The error wraps ErrUnsupported if
// there is none.
//
// The three system calls are made here and not by go-landlock's package of
// wrappers: it brings libpsx along, which takes over the making of threads.
func ABI() (int, error) {
	version, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch errno {
	case 0:
		return int(version), nil
	case unix.ENOSYS:
		return 0, fmt.Errorf("%w: it is not built in (CONFIG_SECURITY_LANDLOCK), or an outer filter (a container's) hides it", ErrUnsupported)
	case unix.EOPNOTSUPP:
		return 0, fmt.Errorf("%w: it is switched off: add landlock to lsm= on the kernel's command line", ErrUnsupported)
	}
	return 0, fmt.Errorf("cannot ask for the Landlock version: %w", errno)
}

// Ruleset is a rule set in the kernel that confines nobody yet. It holds
// descriptors, all close-on-exec, until Close or execve.
type Ruleset struct {
	fd   int
	plan Plan
}

// Open opens the paths of the plan and gives the rules to the kernel. It changes
// nothing about the process. A path that is missing and not optional is an error,
// as is one that leads to where the service must not write.
func (p Plan) Open(ctx context.Context) (*Ruleset, error) {
	var errs []error
	var held []opened
	defer func() {
		for _, o := range held {
			_ = unix.Close(o.fd) // the rules hold what they need
		}
	}()
	places := p.Set
	places.Rules = nil
	for _, r := range p.Set.Rules {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		o, err := openPath(r.Path)
		switch {
		case err == nil:
			held = append(held, o)
			place := r
			place.Path = o.path
			places.Rules = append(places.Rules, place)
		case r.Optional && missing(err):
		case r.Setting != "":
			errs = append(errs, fmt.Errorf("%s: %w", r.Setting, err))
		default:
			errs = append(errs, err)
		}
	}
	places.NeverWrite = realPlaces(p.Set.NeverWrite)
	errs = append(errs, places.Fault())
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p.create(places.Rules, held)
}

// realPlaces adds to paths where they lead today.
func realPlaces(paths []string) []string {
	all := slices.Clone(paths)
	for _, path := range paths {
		if o, err := openPath(path); err == nil {
			_ = unix.Close(o.fd)
			all = append(all, o.path)
		}
	}
	return all
}

func (p Plan) create(rules []Rule, held []opened) (*Ruleset, error) {
	attr := unix.LandlockRulesetAttr{Handled_access_fs: p.files, Handled_access_net: p.net, Scoped: p.scoped}
	// An older kernel takes the longer structure if the rest of it is zero.
	fd, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return nil, fmt.Errorf("cannot create a Landlock rule set: %w", errno)
	}
	s := &Ruleset{fd: int(fd), plan: p}
	for i, r := range rules {
		rights := r.Access.rights() & p.files
		if !held[i].dir {
			rights &= rightsFile
		}
		if rights == 0 {
			continue
		}
		if err := s.allowPath(held[i].fd, rights); err != nil {
			s.Close()
			return nil, fmt.Errorf("cannot allow %s at %s: %w", r.Access, r.Path, err)
		}
	}
	for right, ports := range map[uint64]Ports{unix.LANDLOCK_ACCESS_NET_BIND_TCP: p.Set.Bind, unix.LANDLOCK_ACCESS_NET_CONNECT_TCP: p.Set.Connect} {
		if p.net&right == 0 {
			continue
		}
		for _, port := range ports.Allowed {
			if err := s.allowPort(port, right); err != nil {
				s.Close()
				return nil, fmt.Errorf("cannot allow TCP port %d: %w", port, err)
			}
		}
	}
	return s, nil
}

func (s *Ruleset) allowPath(fd int, rights uint64) error {
	// struct landlock_path_beneath_attr is packed: 12 bytes, of which the kernel
	// takes no more.
	attr := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(fd)}
	return s.addRule(unix.LANDLOCK_RULE_PATH_BENEATH, unsafe.Pointer(&attr))
}

// ruleNetPort is LANDLOCK_RULE_NET_PORT, and portAttr its landlock_net_port_attr.
const ruleNetPort = 2

type portAttr struct{ access, port uint64 }

func (s *Ruleset) allowPort(port uint16, right uint64) error {
	attr := portAttr{access: right, port: uint64(port)}
	return s.addRule(ruleNetPort, unsafe.Pointer(&attr))
}

func (s *Ruleset) addRule(kind uintptr, attr unsafe.Pointer) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(s.fd), kind, uintptr(attr), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Plan is what the rule set was made from.
func (s *Ruleset) Plan() Plan { return s.plan }

// Restrict puts the rules on the calling thread and on whatever it becomes by
// execve or starts by clone; they cannot be taken off again. The thread must have
// no_new_privs.
func (s *Ruleset) Restrict() error {
	_, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(s.fd), s.plan.flags, 0)
	runtime.KeepAlive(s)
	switch errno {
	case 0:
		return nil
	case unix.EPERM:
		return fmt.Errorf("cannot enforce the Landlock rules: %w: no_new_privs is not set on this thread", errno)
	case unix.E2BIG:
		return fmt.Errorf("cannot enforce the Landlock rules: %w: this process is in 16 Landlock domains already: start it from fewer sandboxes", errno)
	}
	return fmt.Errorf("cannot enforce the Landlock rules: %w", errno)
}

// Close gives the rule set back; it has no effect on threads that are restricted.
func (s *Ruleset) Close() {
	if s != nil && s.fd >= 0 {
		_ = unix.Close(s.fd) // nothing was written
		s.fd = -1
	}
}
