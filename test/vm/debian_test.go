package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/drill"
	"github.com/pghardend/pghardend/test/vm/testvm"
)

// release is what differs between the machines.
type release struct {
	image     testvm.Image
	kernel    string
	abi       int
	missing   []string // of Landlock, in this kernel
	delegates bool     // systemd has DelegateSubgroup (254)
	rows      string   // of the drill, "" for all
	stops     int      // at least so many attempts
	stopsNot  []string // attacks that Landlock of this kernel has no rule for, and no other layer but SELinux
}

func TestDebian12(t *testing.T) {
	t.Parallel()
	checkRelease(t, release{image: testvm.Debian12, kernel: "6.1.", abi: 2,
		missing:  []string{"truncate", "ioctl-dev", "tcp-bind", "tcp-connect", "signals", "abstract-sockets", "audit-log"},
		stops:    45,
		stopsNot: []string{"A43/same-user", "A52/abstract"}}) // Landlock scopes signals and abstract sockets from 6.12 on
}

func TestDebian13(t *testing.T) {
	t.Parallel()
	checkRelease(t, release{image: testvm.Debian13, kernel: "6.12.", abi: 6, missing: []string{"audit-log"}, delegates: true,
		rows: "A43,A48,A52", stops: 9}) // what Landlock stops from this kernel on
}

// checkRelease runs all of them on one machine, in this order.
func checkRelease(t *testing.T, r release) {
	ctx := t.Context()
	m := boot(ctx, t, testvm.Options{Image: r.image})
	m.configure(ctx, t, "    cgroup: {tasks_max: 300, memory_max: 1G, cpu_weight: 200}\n")
	m.output(ctx, t, "systemctl start pghardend")
	m.ready(ctx, t)
	for _, check := range []struct {
		name string
		run  func(context.Context, *testing.T, *machine, release)
	}{
		{"Confined", checkConfined},
		{"Landlock", checkLandlock},
		{"Cgroups", checkCgroups},
		{"Yama", checkYama},
		{"Work", checkWork},
		{"Drill", checkDrill},
		{"RequiredCgroups", checkRequiredCgroups},
		{"Unit", checkUnit},
	} {
		t.Run(check.name, func(t *testing.T) { check.run(t.Context(), t, m, r) })
	}
}

// The unit has started the server, and the kernel says that it is in its box.
func checkConfined(ctx context.Context, t *testing.T, m *machine, r release) {
	if kernel := m.output(ctx, t, "uname -r"); !strings.HasPrefix(kernel, r.kernel) {
		t.Fatalf("the kernel is %s, want %s", kernel, r.kernel)
	}
	pid := m.ready(ctx, t)
	if unit := m.output(ctx, t, fmt.Sprintf("ps -o unit= -p %d", pid)); unit != "pghardend.service" {
		t.Errorf("the server is in the unit %q", unit)
	}
	got := fields(m.output(ctx, t, fmt.Sprintf("cat /proc/%d/status", pid)))
	for name, want := range map[string]string{
		"CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1",
	} {
		if got[name] != want {
			t.Errorf("%s of the server is %q, want %q", name, got[name], want)
		}
	}
	if uid := m.output(ctx, t, "id -u postgres"); got["Uid"] != strings.Join([]string{uid, uid, uid, uid}, " ") {
		t.Errorf("Uid of the server is %q, want %s", got["Uid"], uid)
	}
	status := m.awaitStatus(ctx, t, "all layers are looked at", func(s control.Status) bool { return s.State == control.StateOK })
	for _, name := range []string{"dac", "capabilities", "seccomp", "rlimits", "mounts", "landlock"} {
		if l := layer(t, status, "postgres", name); !l.Configured || !l.Enforced {
			t.Errorf("%s is not enforced: %s", name, l.Detail)
		}
	}
	m.output(ctx, t, "pghardend verify")
}

// What the kernel lacks is named, and nothing of it is called enforced.
func checkLandlock(ctx context.Context, t *testing.T, m *machine, r release) {
	status, err := m.status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	detail := layer(t, status, "postgres", "landlock").Detail
	if want := fmt.Sprintf("(ABI %d)", r.abi); !strings.Contains(detail, want) {
		t.Errorf("no %s in: %s", want, detail)
	}
	enforced, lacking, _ := strings.Cut(detail, "NOT enforced by this kernel")
	for _, feature := range []string{"truncate", "ioctl-dev", "tcp-bind", "tcp-connect", "signals", "abstract-sockets", "audit-log"} {
		missing := false
		for _, m := range r.missing {
			missing = missing || m == feature
		}
		if strings.Contains(lacking, feature) != missing || missing && strings.Contains(enforced, feature) {
			t.Errorf("%s: missing is %t, but: %s", feature, missing, detail)
		}
	}
}

// With systemd's delegation the groups have their bounds, and they hold; without it status says so.
func checkCgroups(ctx context.Context, t *testing.T, m *machine, r release) {
	status, err := m.status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	l := layer(t, status, "postgres", "cgroup")
	group := m.output(ctx, t, fmt.Sprintf("sed -n s/^0:://p /proc/%d/cgroup", m.ready(ctx, t)))
	if !r.delegates {
		if l.Enforced || !strings.Contains(l.Detail, "systemd 254") {
			t.Errorf("cgroup is enforced: %t, %s", l.Enforced, l.Detail)
		}
		if group != "/system.slice/pghardend.service" {
			t.Errorf("the server is in %s", group)
		}
		return
	}
	if !l.Enforced {
		t.Fatalf("cgroup is not enforced: %s", l.Detail)
	}
	dir := "/sys/fs/cgroup" + group
	for file, want := range map[string]string{"pids.max": "300", "memory.max": "1073741824", "cpu.weight": "200"} {
		if got := m.output(ctx, t, "cat "+dir+"/"+file); got != want {
			t.Errorf("%s of %s is %s, want %s", file, group, got, want)
		}
	}
	agent := m.output(ctx, t, "sed -n s/^0:://p /proc/$(systemctl show -P MainPID pghardend)/cgroup")
	if agent == group {
		t.Errorf("the agent is in the group of its service, %s", group)
	}
	// A51: as many forks as it takes, and some more. The control is the same in no group.
	bomb := `perl -e 'my @p; for (1..400) { my $p = fork; last unless defined $p; if (!$p) { sleep 600; exit } push @p, $p } print scalar @p; kill 9, @p; wait for @p'`
	if n := m.output(ctx, t, bomb); n != "400" {
		t.Fatalf("outside of the group there are only %s forks", n)
	}
	n, err := strconv.Atoi(m.output(ctx, t, "echo $$ >"+dir+"/cgroup.procs; exec "+bomb))
	if err != nil || n >= 300 {
		t.Errorf("%d forks in the group, %v", n, err)
	}
	m.output(ctx, t, "pghardend status")
	m.sql(ctx, t, "SELECT 1")
}

// verify reads filters by ptrace, which Yama restricts to root at 2.
func checkYama(ctx context.Context, t *testing.T, m *machine, _ release) {
	before := m.output(ctx, t, "cat /proc/sys/kernel/yama/ptrace_scope")
	for _, scope := range []string{"1", "2"} {
		m.output(ctx, t, "echo "+scope+" >/proc/sys/kernel/yama/ptrace_scope")
		m.output(ctx, t, "pghardend verify")
	}
	m.output(ctx, t, "echo "+before+" >/proc/sys/kernel/yama/ptrace_scope")
}

// A server of the release at work: nothing that it does is denied, and it outlives the agent.
func checkWork(ctx context.Context, t *testing.T, m *machine, r release) {
	bin := "/usr/lib/postgresql/" + r.image.Postgres() + "/bin/"
	m.output(ctx, t, "runuser -u postgres -- "+bin+"pgbench -q -i -s 1 postgres")
	m.output(ctx, t, "runuser -u postgres -- "+bin+"pgbench -n -c 4 -t 50 postgres")
	m.output(ctx, t, "runuser -u postgres -- "+bin+"pgbench -n -c 4 -t 200 -S -M prepared postgres")
	// Parallel workers and their shared memory.
	m.sql(ctx, t, "SET parallel_setup_cost=0; SET parallel_tuple_cost=0; SET min_parallel_table_scan_size=0; SELECT sum(abalance) FROM pgbench_accounts")
	m.sql(ctx, t, "VACUUM (FULL, ANALYZE) pgbench_accounts")

	// A crash of one server process: the others restart, the first stays.
	pid := m.ready(ctx, t)
	m.output(ctx, t, fmt.Sprintf("kill -9 $(pgrep -o -P %d -f 'background writer')", pid))
	m.output(ctx, t, fmt.Sprintf("until %spg_isready -q && pgrep -P %d -f 'background writer'; do sleep 0.2; done", bin, pid))
	if n := m.sql(ctx, t, "SELECT count(*) FROM pgbench_history"); n != "200" {
		t.Errorf("%s rows after the crash, want 200", n)
	}

	// The agent goes and comes.
	m.output(ctx, t, "systemctl restart pghardend")
	if now := m.ready(ctx, t); now != pid {
		t.Errorf("the server is process %d, and was %d before the agent's restart", now, pid)
	}
	m.output(ctx, t, "pghardend stop --service postgres && pghardend start --service postgres")
	if now := m.ready(ctx, t); now == pid {
		t.Errorf("the server is process %d as before the stop", now)
	}
	m.output(ctx, t, "pghardend verify")
	status := m.awaitStatus(ctx, t, "the restarted agent has looked", func(s control.Status) bool { return s.State == control.StateOK })
	if len(status.Denials.Last) > 0 || status.Denials.Source != "trace" {
		t.Errorf("denied, by %s: %+v", status.Denials.Source, status.Denials.Last)
	}
	if events := m.output(ctx, t, "pghardend events | grep -i denied || true"); events != "" {
		t.Errorf("denied: %s", events)
	}
}

// checkDrill attacks with every layer that the kernel has. Which of them would do alone is for test/e2e: emulation is slow.
func checkDrill(ctx context.Context, t *testing.T, m *machine, r release) {
	ctx, cancel := context.WithTimeout(ctx, 12*time.Minute)
	defer cancel()
	m.configure(ctx, t, "    cgroup: {memory_max: 512M}\n")
	run, err := m.Run(ctx, "pghardend drill --json --rows="+r.rows, nil)
	if err != nil {
		t.Fatal(err)
	}
	var report drill.Report
	if err := json.Unmarshal([]byte(run.Stdout), &report); err != nil {
		t.Fatalf("exit %d: %v: %s", run.Exit, err, run.Stdout+run.Stderr)
	}
	count := map[string]int{}
	var missed []string
	for _, a := range report.Attempts {
		count[a.Result]++
		t.Logf("%-4s %-24s %-14s %-12s %s", a.Row, a.Name, a.Result, a.Layer, a.Evidence)
		if a.Result == drill.NotStopped {
			missed = append(missed, a.Row+"/"+a.Name)
		}
	}
	if !slices.Equal(missed, r.stopsNot) {
		t.Errorf("not stopped: %q, want %q", missed, r.stopsNot)
	}
	if (run.Exit == 0) != (len(missed) == 0) || count[drill.Stopped] < r.stops {
		t.Errorf("exit %d, %v", run.Exit, count)
	}
}

// A group that is required and that systemd does not delegate: the server is not started.
func checkRequiredCgroups(ctx context.Context, t *testing.T, m *machine, r release) {
	m.output(ctx, t, "pghardend stop --service postgres")
	m.configure(ctx, t, "    cgroup: {mode: required, tasks_max: 300}\n")
	m.output(ctx, t, "systemctl restart pghardend; pghardend start --service postgres || true")
	if r.delegates {
		m.ready(ctx, t)
		return
	}
	s := m.awaitStatus(ctx, t, "the server is refused", func(s control.Status) bool {
		return len(s.Services) == 1 && strings.Contains(s.Services[0].LastError, "cgroup")
	})
	if n := s.Services[0].Processes; n > 0 {
		t.Errorf("%d processes run", n)
	}
}
