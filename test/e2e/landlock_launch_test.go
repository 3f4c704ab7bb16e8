package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/mac"
)

func landlockStatus(t *testing.T) launchInput {
	t.Helper()
	return landlockAttack{script: "echo works"}.input(t)
}

// F30 for this layer: required, and the kernel has none. It is said what would make
// it optional, and what is optional starts without.
func TestF30_LaunchLandlockUnsupported(t *testing.T) {
	in := landlockStatus(t)
	launchRun(t, in).works(t)
	in.NoLandlock = true
	launchRun(t, in).refused(t, launch.StepLandlock, "does not support Landlock", "services.test.landlock.mode", "preferred")
	in.Landlock.Mode = launch.LandlockPreferred
	launchRun(t, in).works(t)
	in.Landlock.Mode = "maybe"
	launchRun(t, in).refused(t, launch.StepLandlock, `"maybe"`, "required")
}

// An abstract NOTIFY_SOCKET would be out of the service's reach.
func TestLaunchLandlockNotifySocket(t *testing.T) {
	in := landlockStatus(t)
	launchRun(t, in, "/usr/bin/env", "NOTIFY_SOCKET=@pghardend").refused(t, launch.StepLandlock, "@pghardend", "use a path")
	launchRun(t, in, "/usr/bin/env", "NOTIFY_SOCKET=/run/systemd/notify").works(t)
}

// A kernel that says yes and does nothing is found out by the probes.
func TestF30_LaunchLandlockWithoutEffect(t *testing.T) {
	in := landlockStatus(t)
	in.FalseLandlock = true
	for _, mode := range []string{launch.LandlockRequired, launch.LandlockPreferred} {
		in.Landlock.Mode = mode
		launchRun(t, in).refused(t, launch.StepLandlockLoad, "do not hold", "reading the root directory", "success",
			"making a file in /tmp", "executing another program", "binding TCP port", "connecting to TCP port", "an abstract socket")
	}
}

// What is declared must be there, must be what it seems, and must not lead to where
// the service may not write.
func TestF30_LaunchLandlockPaths(t *testing.T) {
	dir := launchDir(t)
	place := launchMkdir(t, filepath.Join(dir, "place"), 0o700)
	launchOwn(t, place, launchNobody)
	link := launchSymlink(t, "/etc", filepath.Join(place, "link"))
	rootLink := launchSymlink(t, "place", filepath.Join(dir, "root-link"))
	trap := launchSymlink(t, "/usr/share", filepath.Join(dir, "trap"))
	program := filepath.Join(dir, "cat")
	launchCopy(t, "/usr/bin/cat", program, 0o755)
	for name, c := range map[string]struct {
		path  string
		words []string
	}{
		"missing":           {filepath.Join(dir, "missing"), []string{"setting[0]", "no such file"}},
		"below a link":      {filepath.Join(link, "ssl"), []string{"symbolic link that somebody other than root could have made"}},
		"binaries":          {"/usr/lib", []string{"must not write to /usr"}},
		"binaries, by link": {trap, []string{"/usr/share", "must not write to /usr"}},
		"the helper":        {dir, []string{"it may execute", program}},
	} {
		t.Run(name, func(t *testing.T) {
			in := landlockStatus(t)
			in.Helpers = []string{program}
			in.Landlock.Rules.Rules = append(in.Landlock.Rules.Rules, mac.Rule{Path: c.path, Access: mac.Write, Setting: "setting[0]"})
			launchRun(t, in).refused(t, launch.StepLandlock, c.words...)
		})
	}
	// The control, and a link of root's.
	for _, path := range []string{place, rootLink} {
		a := landlockAttack{script: "echo x > " + place + "/made && echo works", change: func(s *mac.RuleSet) {
			s.Rules = append(s.Rules, mac.Rule{Path: path, Access: mac.Write, Setting: "setting[0]"})
		}}
		if r := launchRun(t, a.input(t)).works(t); r.stdout != "works\n" {
			t.Errorf("%s: %q %s", path, r.stdout, r.stderr)
		}
	}
}

// The launch stage leaves what it has probed, for the process that it became.
func TestLaunchLandlockRecord(t *testing.T) {
	in := landlockStatus(t)
	in.Landlock.RecordDir = filepath.Join(launchDir(t), "run")
	for range 2 { // the second removes what the first left
		launchRun(t, in).works(t)
	}
	left, err := filepath.Glob(filepath.Join(in.Landlock.RecordDir, "*"))
	must(t, err)
	if len(left) != 1 {
		t.Errorf("records %q, want one", left)
	}

	in.Command = []string{"/usr/bin/cat"}
	pid := launchLive(t, in)
	spec, err := in.spec()
	must(t, err)
	state, err := launch.ReadLandlock(t.Context(), spec, pid)
	must(t, err)
	if !state.Enforced() || !strings.Contains(state.Text(), "probed at launch") {
		t.Errorf("%s", state.Text())
	}
	findings := map[string]launch.Finding{}
	for _, f := range state.Findings(pid) {
		if findings[f.Check] = f; !f.OK {
			t.Errorf("%+v", f)
		}
	}
	for _, feature := range []string{"files", "tcp-bind", "tcp-connect", "abstract-sockets"} {
		if f := findings[feature]; !strings.HasPrefix(f.Got, "probed at launch") {
			t.Errorf("%s: %+v", feature, f)
		}
	}
	if f := findings["signals"]; !strings.Contains(f.Got, "with the rules that were probed") {
		t.Errorf("signals: %+v", f)
	}
	// Other rules than those in force, and a process of somebody else's making.
	spec.Landlock.Rules.Bind.Allowed = []uint16{1}
	if state, err = launch.ReadLandlock(t.Context(), spec, pid); err != nil || state.Findings(pid)[0].OK {
		t.Errorf("%v %+v", err, state.Findings(pid))
	}
	if state, err = launch.ReadLandlock(t.Context(), spec, bystander(t)); err != nil || state.Enforced() || state.Findings(pid)[0].OK {
		t.Errorf("%v %s", err, state.Text())
	}
}
