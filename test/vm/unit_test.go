package vm

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/control"
)

// checkUnit has the server in a unit of its own, and the agent in its hardened one: what systemd of each release makes of the unit's mounts
// is what the launch asks for, and a unit that leaves something out does not start it.
func checkUnit(ctx context.Context, t *testing.T, m *machine, _ release) {
	m.output(ctx, t, "pghardend stop --service postgres")
	m.configure(ctx, t, "    start: external\n    max_connections: 100\n    oom_score_adj: -900\n    cgroup: {memory_max: 1G, cpu_weight: 200}\n    landlock: {write: [/var/log/postgresql]}\n")
	m.output(ctx, t, `set -e
		install -D -m 0644 /payload/systemd/pghardend.slice /etc/systemd/system/pghardend.slice
		install -D -m 0644 /payload/systemd/instead-of-postgresql.conf /etc/systemd/system/pghardend@postgres.service.d/instead-of-postgresql.conf
		printf '[Service]\nMemoryMax=1G\nCPUWeight=200\n' >/etc/systemd/system/pghardend@postgres.service.d/bounds.conf
		rm /etc/systemd/system/pghardend.service.d/children.conf
		systemctl daemon-reload
		systemctl restart pghardend
		systemctl start pghardend@postgres || { journalctl -o cat --no-pager -u pghardend@postgres | tail -n 3; exit 1; }`)
	pid := m.ready(ctx, t)
	if unit := m.output(ctx, t, fmt.Sprintf("ps -o unit= -p %d", pid)); unit != "pghardend@postgres.service" {
		t.Errorf("the server is in the unit %q", unit)
	}
	status := m.awaitStatus(ctx, t, "all layers are looked at", func(s control.Status) bool { return s.State == control.StateOK })
	for _, name := range []string{"dac", "capabilities", "seccomp", "rlimits", "mounts", "landlock", "cgroup"} {
		if l := layer(t, status, "postgres", name); !l.Configured || !l.Enforced {
			t.Errorf("%s is not enforced: %s", name, l.Detail)
		}
	}
	checkUnitFilters(ctx, t, m, pid)
	m.output(ctx, t, "pghardend verify --service postgres")
	if score := m.output(ctx, t, fmt.Sprintf("cat /proc/%d/oom_score_adj", pid)); score != "-900" {
		t.Errorf("the OOM score is %s", score)
	}
	m.output(ctx, t, "runuser -u postgres -- pgbench -q -i -s 1 postgres && runuser -u postgres -- pgbench -n -c 2 -t 50 postgres")
	if out, err := m.Output(ctx, `runuser -u postgres -- psql -XAtc "COPY (SELECT 1) TO PROGRAM 'cat'"`); err == nil {
		t.Errorf("a program was executed: %s", out)
	}
	checkUnitRefusal(ctx, t, m)
}

// One filter more than the unit's own.
func checkUnitFilters(ctx context.Context, t *testing.T, m *machine, pid int) {
	t.Helper()
	before, _ := strconv.Atoi(m.output(ctx, t, `sed -n 's/.*"filters_before":\([0-9]*\).*/\1/p' /run/pghardend/launch/postgres.json`))
	now, _ := strconv.Atoi(fields(m.output(ctx, t, fmt.Sprintf("cat /proc/%d/status", pid)))["Seccomp_filters"])
	if before < 10 || now != before+1 {
		t.Errorf("%d filters, %d of them before the launch; want a dozen, and one more", now, before)
	}
}

func checkUnitRefusal(ctx context.Context, t *testing.T, m *machine) {
	t.Helper()
	for directive, drop := range map[string]string{"NoExecPaths=": "NoExecPaths=", "CapabilityBoundingSet=": "CapabilityBoundingSet=CAP_NET_RAW"} {
		out := m.output(ctx, t, fmt.Sprintf(`
			printf '[Service]\nRestart=no\n%s\n' >/etc/systemd/system/pghardend@postgres.service.d/zz.conf
			systemctl daemon-reload
			systemctl restart pghardend@postgres && echo started
			journalctl -o cat --no-pager -u pghardend@postgres | grep '^pghardend: ' | tail -n 1
			rm /etc/systemd/system/pghardend@postgres.service.d/zz.conf`, drop))
		if strings.HasPrefix(out, "started") || !strings.Contains(out, directive) {
			t.Errorf("with %s: %s", drop, out)
		}
	}
}
