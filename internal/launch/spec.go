package launch

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pghardend/pghardend/pkg/limits"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

// Spec says what to launch and how to confine it. It is not modified.
//
// Helpers are declared programs: pgpool's failover script, say. Check makes sure
// that nobody but root can have changed them. What keeps the service from
// executing anything else is Landlock, as far as its package comment says.
type Spec struct {
	Service      string          // its name in the configuration, for messages
	User         string          // a name or a number with an entry in passwd
	Groups       []string        // supplementary groups, names or numbers; all others are refused
	Command      []string        // absolute path of the program, then its arguments
	Helpers      []string        // absolute paths of programs that the service is to run, see below
	DataDir      string          // absolute, becomes the working directory; "" for none
	Limits       limits.Set      // the others stay as inherited
	Capabilities sandbox.CapSet  // kept and made ambient; usually none
	Seccomp      sandbox.Profile // enforced unless Complain is on
	Landlock     Landlock
	Mounts       Mounts
	Cgroup       Cgroup
	SELinux      SELinux
	Environment  []string      // NAME=value, on top of the allow-list
	OOMScoreAdj  *int          // -1000..1000, proc(5); nil leaves it
	Complain     Complain      // the zero value enforces
	LogDenied    bool          // the kernel makes an audit record of each denied call
	RecordDir    string        // where Exec leaves for Verify what it found in force already; "" for nowhere
	Features     ProfileRecord // what Seccomp was made of, for the record of a launch without privileges
	// PrivilegeHint is what to do where the launch lacks a capability; "" if that is for whoever starts it to know.
	PrivilegeHint string
}

// Identity is who a service runs as, numbers as the kernel knows them.
type Identity struct {
	User   string // the name in passwd
	Home   string
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary groups without GID, sorted
}

// specFault finds what no kernel call could take.
func specFault(spec Spec) error {
	if len(spec.Command) == 0 || spec.Command[0] == "" {
		return fmt.Errorf("no program: name one in services.%s.command", spec.Service)
	}
	for i, arg := range spec.Command {
		if strings.ContainsRune(arg, 0) {
			return fmt.Errorf("argument %d holds a NUL byte, which no program can be given: correct services.%s.command",
				i, spec.Service)
		}
	}
	if a := spec.OOMScoreAdj; a != nil && (*a < -1000 || *a > 1000) {
		return fmt.Errorf("oom_score_adj %d: use a value from -1000 to 1000", *a)
	}
	if spec.User == "" {
		return errors.New("no user: name one in services." + spec.Service + ".user")
	}
	return nil
}
