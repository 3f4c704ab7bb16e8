package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/launch"
)

// A40: a program that the service has written itself, executed, and handed to the
// dynamic loader, which Landlock has to let through.
func TestA40_DroppedProgramByLoader(t *testing.T) {
	loader := loaderOf(t, "/usr/bin/true")
	landlockAttack{
		script: `cp /usr/bin/true dropped; chmod 700 dropped; ./dropped && echo ran || echo denied; ` +
			loader + ` ./dropped && echo ran || echo denied`,
		helpers: []string{"cp", "chmod"},
	}.ablate(t, ablation{none: "ran ran", landlock: "denied ran", mounts: "denied denied", both: "denied denied"}, nil)
}

// A40: the same in every place that others may write to as well, of which nobody has
// told the agent.
func TestA40_NoPlaceIsForgotten(t *testing.T) {
	loader := loaderOf(t, "/usr/bin/true")
	open := landlockOpen(t)
	landlockAttack{
		script: `for d in ` + open + ` /tmp /var/tmp /dev/shm; do f=$d/pghardend-dropped.$$; cp /usr/bin/true $f && ` +
			loader + ` $f && echo ran || echo denied; rm -f $f; done`,
		helpers: []string{"cp", "rm"},
	}.ablate(t, ablation{
		none: "ran ran ran ran", landlock: "denied denied denied ran", mounts: "denied denied denied denied", both: "denied denied denied denied",
	}, nil)
}

// A40: a log file comes with the mount that it was opened on, where noexec does not
// hold. The service writes a program to it and runs it by its descriptor.
func TestA40_ProgramInInheritedLog(t *testing.T) {
	loader := loaderOf(t, "/usr/bin/true")
	foreign := []string{"/usr/bin/unshare", "-m"} // the launch is not in the mount namespace that the log was opened in
	for _, c := range []struct {
		mounts, want string
		wrap         []string
	}{
		{launch.MountsOff, "ran", nil}, {launch.MountsRequired, "denied", nil}, {launch.MountsOff, "ran", foreign}, {launch.MountsRequired, "denied", foreign},
	} {
		in := landlockAttack{
			script: `cat /usr/bin/true; ` + loader + ` /proc/self/fd/1 && echo ran >&2 || echo denied >&2`,
		}.input(t)
		in.Landlock.Mode = launch.LandlockOff
		in.Mounts = serviceMounts(t, in.DataDir)
		in.Mounts.Mode = c.mounts
		log := filepath.Join(launchDir(t), "log")
		launchWrite(t, log, nil, 0o644)
		cmd, _ := launchCommand(t, in, c.wrap...)
		file, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND, 0)
		must(t, err)
		defer file.Close()
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = file, &said
		_ = cmd.Run() // what it says counts
		if words := strings.Fields(said.String()); len(words) == 0 || words[len(words)-1] != c.want {
			t.Errorf("mounts %s: %q, want %s", c.mounts, said.String(), c.want)
		}
		written, err := os.ReadFile(log)
		must(t, err)
		program, err := os.ReadFile("/usr/bin/true")
		must(t, err)
		if !bytes.Equal(written, program) {
			t.Errorf("mounts %s: %d bytes of output are in the log, want %d", c.mounts, len(written), len(program))
		}
	}
}

// A40: a program without a file, which is seccomp's part: neither Landlock nor a mount
// has a say in it.
func TestA40_ProgramInMemory(t *testing.T) {
	memory := []string{"memfd_create"}
	for _, c := range []struct {
		name, profile, want string
	}{
		{"seccomp lets it be", launchProfile(t, memory, memory), "ran"},
		{"as it is", "", "denied"},
	} {
		in := landlockAttack{
			shell: "/usr/bin/perl", flag: "-e",
			script: `$| = 1; my $fd = syscall(319, my $name = "x", 0); if ($fd < 0) { print "denied"; exit }
				open(my $in, "<", "/usr/bin/echo"); open(my $out, ">&=", $fd); binmode $_ for $in, $out; local $/; print {$out} readline($in); $out->flush;
				exec { "/proc/self/fd/$fd" } "echo", "ran"; print "denied"`,
		}.input(t)
		in.Profile = c.profile
		in.Mounts = serviceMounts(t, in.DataDir)
		if r := launchRun(t, in).works(t); strings.TrimSpace(r.stdout) != c.want {
			t.Errorf("%s: %q, want %s\n%s", c.name, r.stdout, c.want, r.stderr)
		}
	}
}

// A50: programs, units and the agent's socket, though every other layer would allow it.
func TestA50_SealedPlaces(t *testing.T) {
	dir := landlockOpen(t)
	bin, units, agent := launchMkdir(t, filepath.Join(dir, "bin"), 0o777), launchMkdir(t, filepath.Join(dir, "units"), 0o777), launchMkdir(t, filepath.Join(dir, "agent"), 0o777)
	launchCopy(t, "/usr/bin/true", filepath.Join(bin, "program"), 0o777)
	launchWrite(t, filepath.Join(units, "x.service"), []byte("[Service]\n"), 0o666)
	launchWrite(t, filepath.Join(agent, "control"), nil, 0o666)
	landlockAttack{
		script: `cd ` + dir + ` || exit; (: >> bin/program) && echo cut || echo denied; (: > units/y.service) && echo made || echo denied;
			mv units away && mv away units && echo moved || echo denied;
			(: < agent/control) && echo reached || echo denied`,
		helpers: []string{"mv"},
	}.ablate(t, ablation{
		none: "cut made moved reached", landlock: "denied denied denied denied",
		mounts: "denied denied denied denied", both: "denied denied denied denied",
	}, func(m *launch.Mounts) {
		m.Paths.ReadOnly = append(m.Paths.ReadOnly, bin, units)
		m.Paths.Hide = []string{agent}
	})
}

// A53: a device node, wherever it is and whatever its mode. Those that are used work.
func TestA53_DeviceNodes(t *testing.T) {
	dir := landlockOpen(t)
	a := landlockAttack{
		script: `(: < ` + dir + `/zero) && echo opened || echo denied; (: < /dev/zero) && (: > /dev/null) && echo works`,
		wrap:   inNamespace("mount -t tmpfs -o dev none " + dir + "; mknod " + dir + "/zero c 1 5; chmod 755 " + dir + "; chmod 666 " + dir + "/zero"),
	}
	a.ablate(t, ablation{none: "opened works", landlock: "denied works", mounts: "denied works", both: "denied works"}, nil)
}

// A44: what the layer is made of is out of the service's reach: by seccomp, and by
// the capabilities that it does not have.
func TestA44_MountsAreNotUndone(t *testing.T) {
	calls := []string{"mount", "umount2", "mount_setattr", "unshare", "setns"}
	for name, profile := range map[string]string{"seccomp": "", "capabilities alone": launchProfile(t, calls, calls)} {
		in := landlockAttack{
			shell: "/usr/bin/perl", flag: "-e",
			script: `sub try { print syscall(shift, @_) == 0 ? "done " : "denied " }
				my ($none, $root, $etc, $data) = ("none", "/", "/etc", ""); open(my $ns, "<", "/proc/self/ns/mnt") or die;
				try(165, $none, $root, $data, 32 | 4096, $data); try(166, $etc, 2); try(442, -100, $root, 0x8000, pack("Q4", 0, 8, 0, 0), 32);
				try(272, 0x20000); try(308, fileno($ns), 0x20000)`,
		}.input(t)
		in.Profile = profile
		in.Landlock.Mode = launch.LandlockOff // which denies changes of mounts as well
		in.Mounts = serviceMounts(t, in.DataDir)
		if r := launchRun(t, in).works(t); strings.Count(r.stdout, "denied") != 5 {
			t.Errorf("%s: %q %q", name, r.stdout, r.stderr)
		}
	}
	// The control: root can, in mounts of its own.
	shellIn(t, strconv.Itoa(os.Getpid()), "exec unshare -m sh -ec 'mount -o remount,bind,exec /; mount -t tmpfs none /etc; umount /etc; unshare -m true'")
}
