package e2e

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/mounts"
)

// withoutTools is a service's mounts as they are, without those of an attacker.
func withoutTools(m *launch.Mounts) {
	m.Paths.Exec = slices.DeleteFunc(m.Paths.Exec, func(p string) bool { return p == "/usr/bin" })
}

// A36, A40: programs of the system, by execve and by the dynamic loader, which Landlock
// has to let through. What is declared works, with what it needs.
func TestA36_ProgramsByMountsAlone(t *testing.T) {
	loader := loaderOf(t, "/usr/bin/perl")
	landlockAttack{
		script: `/usr/bin/perl -e 1 && echo ran || echo denied; ` + loader + ` /usr/bin/perl -e 1 && echo ran || echo denied;
			/usr/lib/git-core/git-daemon --help >/dev/null; [ $? = 126 ] && echo denied || echo ran; cat /dev/null && echo cat`,
		helpers: []string{"cat"},
	}.ablate(t, ablation{none: "ran ran ran cat", landlock: "denied ran denied cat", mounts: "denied denied denied cat", both: "denied denied denied cat"}, withoutTools)
}

// A42: procfs is read-only where the service has no OOM score to change.
func TestA42_ProcfsIsReadOnly(t *testing.T) {
	victim := strconv.Itoa(bystander(t))
	for _, c := range []struct {
		score *int
		mode  string
		want  string
	}{
		{nil, launch.MountsOff, "mem score"}, {nil, launch.MountsRequired, ""}, {new(int), launch.MountsRequired, ""}, {ptr(100), launch.MountsRequired, "mem score"},
	} {
		in := landlockAttack{script: `(: >> /proc/` + victim + `/mem) && echo mem; (echo 100 > /proc/self/oom_score_adj) && echo score; echo`}.input(t)
		in.Landlock.Mode, in.OOMScoreAdj = launch.LandlockOff, c.score
		in.Mounts = serviceMounts(t, in.DataDir)
		in.Mounts.Mode = c.mode
		r := launchRun(t, in).works(t)
		if got := strings.Join(strings.Fields(r.stdout), " "); got != c.want {
			t.Errorf("score %v, mounts %s: %q, want %q\n%s", c.score, c.mode, got, c.want, r.stderr)
		}
	}
}

func ptr(n int) *int { return &n }

// Mounts of a version that had all of /usr executable are told of, and left: what runs
// would lose its libraries.
func TestLaunchMountsOfAnotherVersion(t *testing.T) {
	data := servicePlace(t, launchDir(t), "data")
	old := mountsHeld(t, data)
	old.Mounts.Paths.Exec = append(old.Mounts.Paths.Exec, "/usr")
	cmd, _ := launchCommand(t, old)
	pid := startTalking(t, cmd)
	now := mountsHeld(t, data)
	withoutTools(&now.Mounts)
	if got := mountFaults(t, now, pid); !strings.HasPrefix(got, "noexec: executable: /usr (") {
		t.Errorf("faults %q", got)
	}
	spec, err := now.spec()
	must(t, err)
	if err := launch.RepairMounts(t.Context(), spec, pid); err == nil || !strings.Contains(err.Error(), "restart the service") {
		t.Errorf("the repair says %v", err)
	}
	table, err := mounts.ReadTable(t.Context(), pid)
	must(t, err)
	if m, ok := table.At("/usr/lib/os-release"); !ok || m.Has("noexec") {
		t.Errorf("what runs has lost its libraries: %+v", m)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err != nil {
		t.Error(err)
	}
}
