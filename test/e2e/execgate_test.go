package e2e

import (
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/launch"
)

// gated is a launch of a service without helpers; neither Landlock nor mounts have a say.
func gated(command ...string) launchInput {
	return launchInput{User: "nobody", Command: command, Gated: true}
}

// The launch stage passes the gate, in place, with arguments, environment and limits as ever.
func TestExecGateLetsTheLaunchThrough(t *testing.T) {
	in := launchStatus()
	in.Gated = true
	r := launchRun(t, in).works(t)
	r.wantFields(t, "Name", "cat", "Seccomp", "2", "NoNewPrivs", "1", "CapBnd", "0000000000000000")
	for range 50 { // threads that are made at the wrong moment would end some
		launchRun(t, in).works(t)
	}
	in.Command = []string{"/usr/bin/cat", "/proc/self/environ"}
	in.Environment = []string{"MARK=1"}
	if r := launchRun(t, in).works(t); !strings.Contains(r.stdout, "MARK=1\x00") || !strings.Contains(r.stdout, "RES_OPTIONS=use-vc\x00") {
		t.Errorf("environment %q", r.stdout)
	}
	in.Command = []string{"/usr/bin/cat", "/proc/self/maps"}
	if r := launchRun(t, in).works(t); strings.HasPrefix(r.stdout, "00000000-") || !strings.Contains(r.stdout, "[stack]") {
		t.Errorf("page 0 is still mapped:\n%s", r.stdout)
	}
}

// A36: a program is not executed, be it from a path or by the dynamic loader.
func TestA36_ExecGateAlone(t *testing.T) {
	for _, argv := range [][]string{
		{"/usr/bin/env", "/usr/bin/echo", "done"}, {"/usr/bin/env", "/lib64/ld-linux-x86-64.so.2", "/usr/bin/echo", "done"},
	} {
		in := gated(argv...)
		if r := launchRun(t, in); r.code != 126 || r.stdout != "" || !strings.Contains(r.stderr, "Operation not permitted") {
			t.Errorf("%q: exit code %d, %q %q", argv, r.code, r.stdout, r.stderr)
		}
		in.Gated = false
		if r := launchRun(t, in).works(t); r.stdout != "done\n" {
			t.Errorf("%q without the gate: %q", argv, r.stdout)
		}
	}
}

// Without the privilege that it takes there is no launch, and the error says what to do.
func TestExecGateIsRefused(t *testing.T) {
	in := gated("/usr/bin/cat", "/proc/self/status")
	launchRun(t, in, "/usr/bin/setpriv", "--bounding-set=-sys_rawio", "--").refused(t, launch.StepSeccomp,
		"CAP_SYS_RAWIO", "CapabilityBoundingSet=", "add open_exec to services.test.features")
	in.Capabilities = []string{"CAP_SYS_RAWIO"}
	launchRun(t, in).refused(t, launch.StepSeccomp, "CAP_SYS_RAWIO lets the service map page 0", "open_exec")
	// A user namespace has a capability of the name, which is not the one.
	in = gated("/usr/bin/cat", "/proc/self/status")
	launchRun(t, in, "/usr/bin/unshare", "--user", "--map-root-user", "--").refused(t, launch.StepExecGate,
		"cannot map page 0", "first user namespace", "open_exec")
}
