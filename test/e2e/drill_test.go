package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/drill"
	"github.com/pghardend/pghardend/internal/testbed"
)

// drillTimeout is for some hundred launches of a program with the race detector.
const drillTimeout = 20 * time.Minute

// drillBed is a node whose agent does not run: a drill needs none.
func drillBed(t *testing.T, change func(*testbed.Service)) *slice {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), drillTimeout)
	t.Cleanup(cancel)
	bed, err := testbed.New(ctx, bedName("drill"), []testbed.HostSpec{{Name: "pg-0", Addresses: []string{"10.20.1.10/24"}}})
	must(t, err)
	t.Cleanup(func() { must(t, bed.Close()) })
	s := &slice{t: t, ctx: ctx, bed: bed, node: bed.Host("pg-0")}
	s.cluster, err = bed.NewCluster(ctx, testbed.ClusterSpec{})
	must(t, err)
	service := testbed.ServiceOf(s.cluster)
	service.Groups = supplementaryGroups(t, s.cluster.User)
	service.Limits = sliceLimits
	service.Cgroup = map[string]any{"mode": "required", "memory_max": "1G"}
	run(t, s.node, "mkdir -p /run/dbus") // the node's own
	if change != nil {
		change(&service)
	}
	s.cfg = testbed.AgentConfig{
		Backend: "nft", Services: map[string]testbed.Service{"postgres": service},
		Peers: testbed.Peers{Instance: "orders-prod", Nodes: []testbed.Peer{testbed.PeerOf(s.node, "postgres")},
			Networks: map[string][]string{"control_plane": {"10.0.0.0/24"}}},
	}
	s.agent, err = testbed.NewAgent(ctx, s.node, s.cfg)
	must(t, err)
	s.agent.Binary, err = testbed.BuildPlainBinary(ctx) // it is what attacks, too
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(s.agent.Dir, "state"), 0o700))
	return s
}

// drillReport runs a drill and wants an exit code, and nothing left behind.
func (s *slice) drillReport(code int, args ...string) drill.Report {
	s.t.Helper()
	before := drillTraces(s.t, s)
	var r drill.Report
	got, err := s.agent.JSON(s.ctx, &r, append([]string{"drill"}, args...)...)
	must(s.t, err)
	if got != code {
		s.t.Errorf("drill %q: exit code %d, want %d: %+v", args, got, code, r.Attempts)
	}
	if after := drillTraces(s.t, s); after != before {
		s.t.Errorf("before the drill:\n%s\nafter it:\n%s", before, after)
	}
	return r
}

// drillTraces is everything that a drill could leave on the machine or the node.
func drillTraces(t *testing.T, s *slice) string {
	t.Helper()
	var out strings.Builder
	files, err := filepath.Glob(filepath.Join(s.agent.Dir, "state", "*"))
	must(t, err)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	mine := 0
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, s.agent.Dir) {
			mine++
		}
	}
	var shm []string // of the drills' users; others have some on this machine
	shared, err := os.ReadDir("/dev/shm")
	must(t, err)
	for _, f := range shared {
		if info, err := f.Info(); err == nil && drillUser(info.Sys().(*syscall.Stat_t).Uid) {
			shm = append(shm, f.Name())
		}
	}
	fmt.Fprintf(&out, "files %q\n%d mounts of the agent's\nshared memory %q\nprocesses %q\n", files, mine, shm, drillProcesses())
	out.WriteString(run(t, s.node, "iptables-save -t filter | grep -v '^#'; ip6tables-save -t filter | grep -v '^#'; ipset save; ip -o link | cut -d' ' -f2; ls /dev/shm; cat /etc/passwd | wc -l; ipcs -m"))
	for _, dir := range ourGroups(t) {
		if strings.Contains(dir, "/pghardend-drill-") {
			fmt.Fprintln(&out, dir)
		}
	}
	return out.String()
}

// drillUser: drills have one of these ids each.
func drillUser(uid uint32) bool { return uid >= 65520 && uid <= 65533 }

// drillProcesses are processes of the users that drills have.
func drillProcesses() []string {
	var found []string
	entries, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, path := range entries {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for uid := 65520; uid <= 65533; uid++ {
			if strings.Contains(string(data), fmt.Sprintf("\nUid:\t%d\t", uid)) {
				found = append(found, path)
			}
		}
	}
	return found
}

func drillRow(r drill.Report, row, name string) drill.Result {
	for _, a := range r.Attempts {
		if a.Row == row && a.Name == name {
			return a
		}
	}
	return drill.Result{Result: "not tried"}
}

// A proper configuration stops everything, and several layers do so alone.
func TestDrillIsGreen(t *testing.T) {
	s := drillBed(t, nil)
	r := s.drillReport(0, "--ablate")
	counts := map[string]int{}
	for _, a := range r.Attempts {
		counts[a.Result]++
		if a.Result == drill.Stopped && (a.Layer == "" || !slices.Contains(a.Alone, a.Layer)) {
			t.Errorf("%s %s: stopped by %q, alone by %q", a.Row, a.Name, a.Layer, a.Alone)
		}
		t.Logf("%s %-18s %-14s %-12s alone %v: %s; control: %s", a.Row, a.Name, a.Result, a.Layer, a.Alone, a.Evidence, a.Control)
	}
	if counts[drill.Stopped] < 50 || counts[drill.Open] != 1 || drillRow(r, "A52", "public-socket").Result != drill.Open {
		t.Errorf("%v", counts)
	}
	if !slices.Equal(r.Open, []string{"A52/public-socket"}) {
		t.Errorf("open: %q", r.Open)
	}
	wantTwoLayers(t, r)
}

// singleLayer are the attempts of the rows below that one layer alone stops here. The
// catalogue has the reasons, docs/drill.md too.
var singleLayer = []string{
	"A40/memfd", "A42/proc-mem-read", "A43/same-user", "A46/vsock", "A48/postgres-ipv4", "A48/postgres-ipv6", "A49/open-door",
}

// wantTwoLayers: at least two that are independent, of each attempt.
func wantTwoLayers(t *testing.T, r drill.Report) {
	t.Helper()
	rows := []string{"A36", "A40", "A41", "A42", "A43", "A44", "A46", "A47", "A48", "A49", "A50"}
	for _, a := range r.Attempts {
		if !slices.Contains(rows, a.Row) || a.Result != drill.Stopped {
			continue
		}
		single := slices.Contains(singleLayer, a.Row+"/"+a.Name)
		if single != (len(a.Alone) < 2) || single != (a.Single != "") {
			t.Errorf("%s %s: alone by %q; it should be two, or the reason be known (%q) and it be in the list (%v)", a.Row, a.Name, a.Alone, a.Single, single)
		}
	}
	for _, want := range []struct {
		row, name string
		layers    []drill.Layer
	}{
		{"A36", "program", []drill.Layer{drill.Seccomp, drill.Mounts, drill.Landlock}},
		{"A36", "reverse-shell", []drill.Layer{drill.Seccomp, drill.Mounts, drill.Landlock, drill.Netfilter}},
		{"A40", "drop", []drill.Layer{drill.Seccomp, drill.Mounts, drill.Landlock}},
		{"A40", "loader", []drill.Layer{drill.Seccomp, drill.Mounts}},
		{"A40", "page-0", []drill.Layer{drill.Mounts, drill.DAC, drill.Capabilities, drill.Landlock}},
		{"A41", "setuid", []drill.Layer{drill.Seccomp, drill.Mounts, drill.Capabilities, drill.Landlock}},
		{"A42", "proc-mem", []drill.Layer{drill.Mounts, drill.Landlock}},
		{"A44", "mount", []drill.Layer{drill.Seccomp, drill.DAC, drill.Capabilities, drill.Landlock}},
		{"A46", "netfilter", []drill.Layer{drill.Seccomp, drill.DAC, drill.Capabilities}},
		{"A47", "dns-ipv4", []drill.Layer{drill.Seccomp, drill.Netfilter}},
		{"A48", "tunnel-ipv6", []drill.Layer{drill.Seccomp, drill.Netfilter}},
		{"A50", "agent-socket", []drill.Layer{drill.Mounts, drill.DAC}},
	} {
		if a := drillRow(r, want.row, want.name); !slices.Equal(a.Alone, want.layers) {
			t.Errorf("%s %s: %s, alone by %q, want %q", want.row, want.name, a.Result, a.Alone, want.layers)
		}
	}
}

// A drill can fail: without a layer, what only that one stops succeeds.
func TestDrillFailsWithoutLayer(t *testing.T) {
	s := drillBed(t, nil)
	for _, tt := range []struct {
		without, rows string
		row, name     string
	}{
		{"seccomp", "A40", "A40", "memfd"},
		{"landlock,mounts,seccomp", "A36", "A36", "program"},
		{"landlock", "A43", "A43", "same-user"},
		{"mounts", "A38", "A38", "load"},
		{"netfilter,seccomp", "A48", "A48", "tunnel-ipv4"},
		{"rlimits", "A51", "A51", "processes"},
		{"cgroup", "A51", "A51", "memory"},
		{"landlock,mounts,seccomp", "A39", "A39", "ssl_passphrase_command"},
		{"landlock,mounts,seccomp", "A39", "A39", "restore_command"},
		{"capabilities,landlock,mounts,seccomp", "A41", "A41", "sudo"},
		{"mounts", "A52", "A52", "dbus"},
		{"dac,capabilities", "A52", "A52", "root-socket"}, // Landlock is probed as one who may read the data directory
		{"capabilities,landlock,mounts,seccomp", "A41", "A41", "setuid"},
		{"capabilities,seccomp,dac", "A44", "A44", "chroot"},
	} {
		r := s.drillReport(3, "--without", tt.without, "--rows", tt.rows)
		if a := drillRow(r, tt.row, tt.name); a.Result != drill.NotStopped || a.Advice == "" {
			t.Errorf("without %s: %s %s: %s by %s: %s", tt.without, tt.row, tt.name, a.Result, a.Layer, a.Evidence)
		}
	}
}

// A configuration that switches a layer off is found out as well.
func TestDrillOfWeakConfiguration(t *testing.T) {
	s := drillBed(t, withoutLandlock)
	r := s.drillReport(3, "--rows", "A36,A40,A51")
	if a := drillRow(r, "A51", "memory"); a.Result != drill.Stopped || a.Layer != drill.Cgroup {
		t.Errorf("%+v", a)
	}
	if a := drillRow(r, "A36", "program"); a.Result != drill.NotStopped {
		t.Errorf("%+v", a)
	}
	if i := slices.IndexFunc(r.Layers, func(l drill.LayerOn) bool { return l.Layer == drill.Landlock }); i < 0 || r.Layers[i].On || !strings.Contains(r.Layers[i].Why, "off") {
		t.Errorf("layers %+v", r.Layers)
	}
}

// Nor is a service bounded whose configuration says nothing of memory.
func TestDrillOfAnUnboundedService(t *testing.T) {
	s := drillBed(t, func(s *testbed.Service) { s.Cgroup = map[string]any{"mode": "required"} })
	r := s.drillReport(3, "--rows", "A51")
	if a := drillRow(r, "A51", "memory"); a.Result != drill.NotStopped || !strings.Contains(a.Advice, "memory_max") {
		t.Errorf("%+v", a)
	}
}

func TestDrillDryRun(t *testing.T) {
	s := drillBed(t, nil)
	before := drillTraces(t, s)
	s.want(0, []string{"A36", "A53", "attempts on a scratch copy"}, "drill", "--dry-run")
	s.want(1, []string{"A99", "rows:"}, "drill", "--dry-run", "--rows", "A99")
	s.want(1, []string{"no layer"}, "drill", "--dry-run", "--without", "x")
	if after := drillTraces(t, s); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// Two drills at once have users, networks and files of their own.
func TestDrillsAtOnce(t *testing.T) {
	s := drillBed(t, nil)
	before := drillTraces(t, s)
	type result struct {
		code int
		r    drill.Report
		err  error
	}
	results := make(chan result, 2)
	for range 2 {
		go func() {
			var x result
			x.code, x.err = s.agent.JSON(s.ctx, &x.r, "drill", "--rows", "A37,A44,A48,A51,A52")
			results <- x
		}()
	}
	for range 2 {
		if x := <-results; x.err != nil || x.code != 0 || len(x.r.Attempts) == 0 {
			t.Errorf("exit code %d, %v: %+v", x.code, x.err, x.r.Attempts)
		}
	}
	if after := drillTraces(t, s); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// An interrupted drill cleans up, and after a killed one the next does.
func TestDrillInterrupted(t *testing.T) {
	s := drillBed(t, nil)
	for _, sig := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGKILL} {
		before := drillTraces(t, s)
		cmd := s.agent.Command(context.WithoutCancel(s.ctx), "drill", "--ablate")
		var said strings.Builder
		cmd.Stderr = &said
		must(t, cmd.Start())
		ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
		must(t, testbed.Await(ctx, "a server in the drill", func(context.Context) error {
			found, err := filepath.Glob(filepath.Join(s.agent.Dir, "state", "drill-*", "area", "data", "postmaster.pid"))
			if err == nil && len(found) == 0 {
				err = errors.New("there is none")
			}
			return err
		}))
		must(t, cmd.Process.Signal(sig))
		err := cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Errorf("%v: the drill ended with %v: %s", sig, err, said.String())
		}
		if sig == unix.SIGKILL {
			s.drillReport0(ctx)
		}
		must(t, testbed.Await(ctx, "nothing to be left", func(context.Context) error {
			if after := drillTraces(t, s); after != before {
				return fmt.Errorf("after %v:\n%s\nbefore:\n%s", sig, after, before)
			}
			return nil
		}))
		cancel()
	}
}

// drillReport0 is a short drill after one that was killed, whose processes the
// kernel ends, and whose files are still there.
func (s *slice) drillReport0(ctx context.Context) {
	s.t.Helper()
	must(s.t, testbed.Await(ctx, "the killed drill's processes to end", func(context.Context) error {
		if found := drillProcesses(); len(found) > 0 {
			return fmt.Errorf("%q", found)
		}
		return nil
	}))
	left, err := filepath.Glob(filepath.Join(s.agent.Dir, "state", "drill-*"))
	must(s.t, err)
	if len(left) != 1 {
		s.t.Errorf("%d scratch areas are left after SIGKILL; the test proves nothing", len(left))
	}
	s.want(0, []string{"stopped"}, "drill", "--rows", "A44")
}
