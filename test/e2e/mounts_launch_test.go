package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/testbed"
)

// mountsHeld is a service that says when it is there and stays until its input ends.
func mountsHeld(t *testing.T, data string) launchInput {
	t.Helper()
	return launchInput{User: "nobody", DataDir: data, Command: []string{"/usr/bin/dash", "-c", "echo ready; read end"}, Mounts: serviceMounts(t, data)}
}

// F30 for this layer: refused where it is required and cannot be had, with the reason
// and the setting. What is optional starts without, and it is not called enforced.
func TestF30_LaunchMountsUnsupported(t *testing.T) {
	data := landlockData(t)
	in := mountsHeld(t, data)
	in.NoMounts = true
	launchRun(t, in).refused(t, launch.StepMounts, "Linux 5.12", "services.test.mounts.mode", "preferred")
	in.Mounts.Mode = "maybe"
	launchRun(t, in).refused(t, launch.StepMounts, `"maybe"`, "required")
	in.Mounts.Mode = launch.MountsPreferred
	cmd, _ := launchCommand(t, in)
	pid := startTalking(t, cmd)
	spec, err := in.spec()
	must(t, err)
	state, err := launch.ReadMounts(t.Context(), spec, pid)
	must(t, err)
	if f := state.Findings(pid); !state.Accepted() || len(f) != 1 || !f[0].OK || !strings.Contains(f[0].Got, "not enforced") {
		t.Errorf("%+v", f)
	}
	in.Mounts.Mode = launch.MountsRequired // what runs is not what is asked for now
	if got := mountFaults(t, in, pid); got != "namespace: the host's" {
		t.Errorf("faults %q", got)
	}
}

// Without CAP_SYS_ADMIN there are no mounts, and none is not what was asked for.
func TestF30_LaunchMountsWithoutCapability(t *testing.T) {
	in := mountsHeld(t, landlockData(t))
	for _, mode := range []string{launch.MountsRequired, launch.MountsPreferred} {
		in.Mounts.Mode = mode
		launchRun(t, in, "/usr/sbin/capsh", "--drop=cap_sys_admin", "--", "-c", `exec "$@"`, "sh").refused(t, launch.StepMounts, "CAP_SYS_ADMIN", "mounts.mode to off")
	}
}

// F18, at launch: places that contradict each other, and code that is not root's.
func TestF30_LaunchMountsPaths(t *testing.T) {
	dir := launchDir(t)
	data := servicePlace(t, dir, "data")
	own := servicePlace(t, dir, "own")
	open := launchMkdir(t, filepath.Join(dir, "open"), 0o777)
	code := launchMkdir(t, filepath.Join(data, "code"), 0o755)
	link := launchSymlink(t, "/usr/share", filepath.Join(dir, "link"))
	for name, c := range map[string]struct {
		change func(*launch.Mounts)
		words  []string
	}{
		"code of the service's":  {func(m *launch.Mounts) { m.Paths.Exec = append(m.Paths.Exec, own) }, []string{own, "belongs to uid 65534"}},
		"code that all write to": {func(m *launch.Mounts) { m.Paths.Exec = append(m.Paths.Exec, open) }, []string{open, "writable by others"}},
		"code below data":        {func(m *launch.Mounts) { m.Paths.Exec = append(m.Paths.Exec, code) }, []string{data, code, "keep the two apart"}},
		"data is hidden":         {func(m *launch.Mounts) { m.Paths.Hide = []string{dir} }, []string{data, dir, "hidden"}},
		"a link to the system":   {func(m *launch.Mounts) { m.Paths.Write = append(m.Paths.Write, link) }, []string{link, "/usr/share", "symbolic link"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := mountsHeld(t, data)
			c.change(&in.Mounts)
			launchRun(t, in).refused(t, launch.StepMounts, c.words...)
		})
	}
}

// Wherever the data directory lies, it is written to and not executed from.
func TestLaunchMountsDataDirectory(t *testing.T) {
	dir := launchDir(t)
	place := servicePlace(t, dir, "place")
	usr := launchMkdir(t, filepath.Join(dir, "usr"), 0o755)
	for name, c := range map[string]struct {
		data, prepare string
		change        func(*launch.Mounts)
	}{
		"plain":                {place, ":", nil},
		"a mount":              {place, "mount -t tmpfs -o uid=65534,mode=700 none " + place, nil},
		"a bind":               {place, "mount --bind " + place + " " + place, nil},
		"bound from elsewhere": {place, "mkdir " + dir + "/else; chown nobody " + dir + "/else; chmod 700 " + dir + "/else; mount --bind " + dir + "/else " + place, nil},
		"behind a link":        {launchSymlink(t, "place", filepath.Join(dir, "link")), ":", nil},
		"a mount in it":        {place, "mkdir -p " + place + "/ts; mount -t tmpfs -o mode=777 none " + place + "/ts", nil},
		"below code":           {servicePlace(t, usr, "data"), ":", func(m *launch.Mounts) { m.Paths.Exec = append(m.Paths.Exec, usr) }},
		"a mount below code":   {filepath.Join(usr, "data"), "mount -t tmpfs -o uid=65534,mode=700 none " + usr + "/data", func(m *launch.Mounts) { m.Paths.Exec = append(m.Paths.Exec, usr) }},
		"a path that is to come": {place, ":", func(m *launch.Mounts) {
			m.Paths.Write = append(m.Paths.Write, filepath.Join(place, "missing"), filepath.Join(dir, "missing"))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			in := landlockAttack{data: c.data,
				script: `for d in . ts; do [ -d $d ] || continue; cp /usr/bin/true $d/x && chmod 700 $d/x && echo written; ` + loaderOf(t, "/usr/bin/true") + ` $d/x && echo ran; $d/x && echo ran; done; echo end`}.input(t)
			in.Landlock.Mode = launch.LandlockOff
			in.Mounts = serviceMounts(t, c.data)
			if c.change != nil {
				c.change(&in.Mounts)
			}
			want := "written end"
			if name == "a mount in it" {
				want = "written written end"
			}
			r := launchRun(t, in, inNamespace(c.prepare)...).works(t)
			if got := strings.Join(strings.Fields(r.stdout), " "); got != want {
				t.Errorf("%q, want %q\n%s", got, want, r.stderr)
			}
		})
	}
}

// The host's mounts stay as they are, and restarts stack nothing.
func TestLaunchMountsLeaveTheHostAlone(t *testing.T) {
	before := mountTable(t)
	data := landlockData(t)
	in := launchInput{User: "nobody", DataDir: data, Command: []string{"/usr/bin/cat", "/proc/self/mountinfo"}, Mounts: serviceMounts(t, data)}
	h := newMountHost(t) // where they are shared, as with systemd
	host := h.sh("cat /proc/self/mountinfo")
	var counts []int
	for range 3 {
		counts = append(counts, strings.Count(launchRun(t, in, h.wrap()...).works(t).stdout, "\n"))
	}
	if counts[0] != counts[1] || counts[1] != counts[2] || counts[0] <= strings.Count(host, "\n") {
		t.Errorf("%v mounts after one, two and three starts", counts)
	}
	cmd, _ := launchCommand(t, mountsHeld(t, data), h.wrap()...)
	startTalking(t, cmd)
	if now := h.sh("cat /proc/self/mountinfo"); now != host {
		t.Errorf("mounts of the host were\n%s\nand are\n%s", host, now)
	}
	if now := mountTable(t); now != before {
		t.Errorf("mounts were\n%s\nand are\n%s", before, now)
	}
}

// What the host mounts later arrives, and is found, since it comes with the host's flags. A
// mount with noexec is as it should be. What it unmounts goes away.
func TestLaunchMountsPropagate(t *testing.T) {
	dir := launchDir(t)
	data := servicePlace(t, dir, "data")
	later := servicePlace(t, data, "later")
	h := newMountHost(t)
	in := mountsHeld(t, data)
	cmd, _ := launchCommand(t, in, h.wrap()...)
	pid := startTalking(t, cmd)
	if got := mountFaults(t, in, pid); got != "" {
		t.Fatalf("faults %q", got)
	}
	h.sh("mount -t tmpfs -o mode=777,nosuid,nodev none " + later + "; echo here > " + later + "/file")
	if text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/root" + later + "/file"); err != nil || string(text) != "here\n" {
		t.Errorf("the service sees %q %v", text, err)
	}
	if got := mountFaults(t, in, pid); !strings.HasPrefix(got, "noexec: executable: "+later+" (") || strings.Contains(got, ";") {
		t.Errorf("faults %q", got)
	}
	spec, err := in.spec()
	must(t, err)
	must(t, launch.RepairMounts(t.Context(), spec, pid))
	if got := mountFaults(t, in, pid); got != "" {
		t.Errorf("after the repair: faults %q", got)
	}
	if host := h.sh("grep " + later + " /proc/self/mountinfo"); strings.Contains(host, "noexec") {
		t.Errorf("the repair reached the host: %s", host)
	}
	h.sh("umount " + later + "; mount -t tmpfs -o mode=777,nosuid,nodev,noexec none " + later)
	if got := mountFaults(t, in, pid); got != "" {
		t.Errorf("faults %q", got)
	}
	h.sh("umount " + later)
	if got := mountFaults(t, in, pid); got != "" {
		t.Errorf("faults %q", got)
	}
}

// Whoever enters the namespace as root can change it. That is found.
func TestLaunchMountsRemountIsFound(t *testing.T) {
	dir := launchDir(t)
	data := servicePlace(t, dir, "data")
	agent := launchMkdir(t, filepath.Join(dir, "agent"), 0o700)
	in := mountsHeld(t, data)
	in.Mounts.Paths.Hide = []string{agent}
	for change, want := range map[string]string{
		"mount -o remount,bind,exec,nosuid,nodev /":         "noexec: executable: / (",
		"mount -o remount,bind,rw,nosuid,nodev /usr":        "read-only: writable: /usr (rw,",
		"mount -o remount,bind,rw,noexec,nosuid,nodev /etc": "read-only: writable: /etc",
		"umount " + agent: "hidden: visible: " + agent,
		"mount -t tmpfs -o noexec,nosuid,nodev none " + agent:                                     "hidden: visible: " + agent,
		"mount --bind " + data + " " + data + "; mount -o remount,bind,noexec,suid,nodev " + data: "nosuid: not on " + data,
		"mount -t tmpfs -o ro,nosuid,nodev none " + data:                                          "noexec: executable: " + data,
	} {
		cmd, _ := launchCommand(t, in)
		pid := startTalking(t, cmd)
		if got := mountFaults(t, in, pid); got != "" {
			t.Fatalf("faults %q", got)
		}
		shellIn(t, strconv.Itoa(pid), change)
		if got := mountFaults(t, in, pid); !strings.Contains(got, want) {
			t.Errorf("%s: faults %q, want %q", change, got, want)
		}
	}
}

// A service that systemd starts before there ever was a daemon: the directories that the daemon will have are there
// and hidden already.
func TestLaunchMountsHideWhatIsNotThereYet(t *testing.T) {
	s := newSlice(t, "nft", nil)
	for _, dir := range []string{"run", "state"} {
		if _, err := os.Stat(filepath.Join(s.agent.Dir, dir)); err == nil {
			t.Fatalf("%s is there; the test proves nothing", dir)
		}
	}
	cmd := s.agent.Command(s.ctx, "exec", "--service", "postgres")
	must(t, cmd.Start())
	defer func() { _ = cmd.Process.Signal(unix.SIGINT); _ = cmd.Wait() }() // it may have ended
	var pid int
	must(t, testbed.Await(s.ctx, "postgres", func(context.Context) error {
		var err error
		pid, err = s.cluster.PID()
		return err
	}))
	for _, dir := range []string{"run", "state"} {
		path := filepath.Join(s.agent.Dir, dir)
		must(t, os.WriteFile(filepath.Join(path, "later"), nil, 0o600))
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/root%s/later", pid, path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the service sees what is in %s: %v", path, err)
		}
	}
}
