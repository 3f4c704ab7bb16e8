package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
)

// hostWithoutSELinux: these are about hosts without it; those with it are for test/vm.
func hostWithoutSELinux(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/sys/fs/selinux/status"); err == nil {
		t.Fatal("this host has SELinux, and this is about a host without: run it on one; test/vm has the others")
	}
}

// F30 for this layer: refused where it is required and cannot be had, with the reason
// and the setting. What is preferred starts, and is not called enforced.
func TestF30_LaunchSELinuxDisabled(t *testing.T) {
	hostWithoutSELinux(t)
	in := mountsHeld(t, landlockData(t))
	in.SELinux = launch.SELinux{Mode: launch.SELinuxRequired, Type: "pghardend_postgres_t", Level: "s0"}
	launchRun(t, in).refused(t, launch.StepSELinux, "SELinux: disabled", "security=selinux", "services.test.selinux.mode", "preferred")
	in.SELinux.Mode = "maybe"
	launchRun(t, in).refused(t, launch.StepSELinux, `"maybe"`, "required")
	in.SELinux.Mode = launch.SELinuxPreferred
	cmd, _ := launchCommand(t, in)
	pid := startTalking(t, cmd)
	spec, err := in.spec()
	must(t, err)
	findings, err := launch.Verify(t.Context(), spec, pid)
	must(t, err)
	state, err := launch.ReadSELinux(t.Context(), spec, pid)
	must(t, err)
	seen := 0
	for _, f := range append(findings, state.Findings(pid)...) {
		if f.Layer != launch.LayerSELinux {
			continue
		}
		if seen++; !f.OK || f.Want != launch.SELinuxPreferred || !strings.Contains(f.Got, "not enforced") {
			t.Errorf("%+v", f)
		}
	}
	if seen != 2 || state.Enforced() {
		t.Errorf("%d findings, %+v", seen, state)
	}
	// What runs is not what is asked for now.
	spec.SELinux.Mode = launch.SELinuxRequired
	findings, err = launch.Verify(t.Context(), spec, pid)
	must(t, err)
	state, err = launch.ReadSELinux(t.Context(), spec, pid)
	must(t, err)
	for _, f := range append(findings, state.Findings(pid)...) {
		if f.Layer == launch.LayerSELinux && f.OK {
			t.Errorf("%+v", f)
		}
	}
}

// F30, the whole of it on a host without SELinux: preferred runs and is flagged in status
// and verify, required refuses with a code of its own.
func TestF30_NoSELinux(t *testing.T) {
	hostWithoutSELinux(t)
	s := newSlice(t, "nft", nil)
	mode := func(mode string) {
		service := s.cfg.Services["postgres"]
		service.SELinux = map[string]any{"mode": mode}
		s.cfg.Services["postgres"] = service
		must(t, s.agent.WriteConfig(s.cfg))
	}
	mode("preferred")
	must(t, s.agent.Start())
	st := s.awaitStatus("a service", func(st control.Status) error {
		if len(st.Services) != 1 || st.Services[0].State != "ready" {
			return fmt.Errorf("%+v", st.Services)
		}
		return nil
	})
	if text := fmt.Sprint(st.Warnings); !containsAll(text, []string{"service postgres is not confined by SELinux", "disabled"}) || len(st.Reasons) > 0 {
		t.Errorf("warnings %s, reasons %q", text, st.Reasons)
	}
	shown := 0
	for _, l := range st.Layers {
		if l.Name != launch.LayerSELinux {
			continue
		}
		if shown++; l.Enforced || !l.Configured {
			t.Errorf("%+v", l)
		}
	}
	if shown != 2 { // of the node and the service
		t.Errorf("%d layers in %+v", shown, st.Layers)
	}
	s.want(0, []string{"selinux", "not enforced"}, "verify")
	s.want(0, nil, "stop", "--service", "postgres")
	mode("required")
	r := s.cli("exec", "--service", "postgres")
	out := r.Stdout + r.Stderr
	if r.Code != 101 || !containsAll(out, []string{"step selinux", "SELinux: disabled", "services.postgres.selinux.mode to preferred"}) {
		t.Errorf("exit code %d: %s", r.Code, out)
	}
}
