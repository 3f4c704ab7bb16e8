package vm

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/test/vm/testvm"
)

// TestSELinuxInstances has two instances' servers on one machine that enforces, told apart by their categories alone; and the policy itself is changed
// under them. The checks run in this order: the last takes the module away.
func TestSELinuxInstances(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	m := boot(ctx, t, testvm.Options{Image: testvm.Debian12, SELinux: "enforcing"})
	m.twoInstances(ctx, t)
	m.checks(t, []machineCheck{
		{"A42_FilesOfAnotherInstance", checkCategories},
		{"F30_PermissiveDomain", checkPermissiveDomain},
		{"F30_ModuleRemoved", checkModuleRemoved},
	})
}

const otherDir = "/var/lib/postgresql/15/other"

// instances is the configuration of both: one user, and all layers off that could tell files apart.
func instances(level, otherLevel string) string {
	return fmt.Sprintf(`    mounts: {mode: off}
    landlock: {mode: off}
    max_connections: 100
    selinux: {mode: required, level: "%s"}
  other:
    profile: postgres
    user: postgres
    groups: [ssl-cert]
    command: [/usr/lib/postgresql/15/bin/postgres, -D, %s, -p, "5433", -c, config_file=/etc/postgresql/15/other/postgresql.conf]
    start_timeout: 5m
    mounts: {mode: off}
    landlock: {mode: off}
    max_connections: 100
    selinux: {mode: required, level: "%s"}
`, level, otherDir, otherLevel)
}

func (m *machine) twoInstances(ctx context.Context, t *testing.T) {
	t.Helper()
	m.output(ctx, t, `set -e
		sysctl -qw kernel.printk_ratelimit=0
		install -D -m 0644 /payload/pghardend.pp /usr/share/selinux/packages/pghardend.pp
		echo 'fsync = off' >/etc/postgresql/15/main/conf.d/vm.conf
		sed -i '1i host all all 127.0.0.1/32 trust' /etc/postgresql/15/main/pg_hba.conf
		cp -a /etc/postgresql/15/main /etc/postgresql/15/other
		sed -i -e s:15/main:15/other:g -e s:15-main:15-other:g /etc/postgresql/15/other/postgresql.conf
		restorecon -RF /etc/postgresql
		# Copies have the label of the directory above. Each file of ours that gets another label is in the kernel's log, which would run over.
		cp -a --no-preserve=context `+dataDir+` `+otherDir+`
		cp -a --no-preserve=context `+dataDir+` `+dataDir+`.new
		rm -rf `+dataDir+`
		mv `+dataDir+`.new `+dataDir+`
		chcon -R system_u:object_r:pghardend_postgres_data_t:s0:c1,c2 `+dataDir+`
		chcon -R system_u:object_r:pghardend_postgres_data_t:s0:c3,c4 `+otherDir)
	m.configure(ctx, t, instances("s0:c1,c2", "s0:c3,c4"))
	m.output(ctx, t, "restorecon -RF /etc/pghardend; systemctl start pghardend")
	m.bothReady(ctx, t)
}

// reads has the superuser of the first instance read a file.
func (m *machine) reads(ctx context.Context, t *testing.T, path string) string {
	t.Helper()
	r, err := m.Run(ctx, fmt.Sprintf(`cd / && runcon -l s0 runuser -u postgres -- /usr/lib/postgresql/15/bin/psql -h 127.0.0.1 -wXAtc "SELECT pg_read_file('%s')" 2>&1`, path), nil)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(r.Stdout)
}

func checkCategories(ctx context.Context, t *testing.T, m *machine) {
	for dir, want := range map[string]string{dataDir: "s0:c1,c2", otherDir: "s0:c3,c4"} {
		if label := m.output(ctx, t, "ps -o label= -p $(head -n 1 "+dir+"/postmaster.pid)"); label != "system_u:system_r:pghardend_postgres_t:"+want {
			t.Errorf("the server of %s is %s, want level %s", dir, label, want)
		}
	}
	if d := m.denied(ctx, t, bootMark); d != "" {
		t.Errorf("denied before anything was attacked:\n%s", d)
	}
	if got := m.reads(ctx, t, dataDir+"/PG_VERSION"); got != "15" {
		t.Errorf("its own file: %q", got)
	}
	mark := m.mark(ctx, t)
	if got := m.reads(ctx, t, otherDir+"/PG_VERSION"); !strings.Contains(got, "Permission denied") {
		t.Errorf("the other instance's file: %q", got)
	}
	record := regexp.MustCompile(`avc:  denied .* comm="postgres" .*scontext=system_u:system_r:pghardend_postgres_t:s0:c1,c2 tcontext=system_u:object_r:pghardend_postgres_data_t:s0:c3,c4 .*`)
	if denied := m.denied(ctx, t, mark); !record.MatchString(denied) {
		t.Errorf("no record of it in\n%s", denied)
	} else {
		t.Log(record.FindString(denied))
	}
	status, err := m.status(ctx)
	if err != nil || len(status.Denials.Last) == 0 || status.Denials.Last[0].Service != "postgres" {
		t.Errorf("status has %+v, %v", status.Denials, err)
	}

	// The control: with the same categories nothing keeps it from the same file. The agent labels what it looks at.
	m.output(ctx, t, "pghardend stop --service other")
	m.relabelled(ctx, t, "s0:c1,c2")
	if got := m.reads(ctx, t, otherDir+"/PG_VERSION"); got != "15" {
		t.Errorf("with the same categories: %q, so the denial shows nothing", got)
	}
	m.relabelled(ctx, t, "s0:c3,c4")
	m.output(ctx, t, "pghardend start --service other")
	m.bothReady(ctx, t)
}

// relabelled gives the other instance a level, and waits until its files have it.
func (m *machine) relabelled(ctx context.Context, t *testing.T, level string) {
	t.Helper()
	m.configure(ctx, t, instances("s0:c1,c2", level))
	m.output(ctx, t, "restorecon -RF /etc/pghardend && systemctl reload pghardend && until [ $(ls -dZ "+otherDir+" "+otherDir+"/PG_VERSION | grep -c "+level+") = 2 ]; do sleep 0.2; done")
}

// What `semanage permissive -a` does, without the time that Python takes on an emulated machine.
func checkPermissiveDomain(ctx context.Context, t *testing.T, m *machine) {
	before := m.lastEvent(ctx, t)
	m.output(ctx, t, "echo '(typepermissive pghardend_postgres_t)' >/tmp/permissive_pghardend_postgres_t.cil && semodule -i /tmp/permissive_pghardend_postgres_t.cil")
	// It stands for as long as the agent needs to build a policy without it.
	m.awaitStatus(ctx, t, "a permissive domain is not shown as enforced", func(s control.Status) bool {
		said := 0
		for _, l := range s.Layers {
			if l.Name == "selinux" && l.Subject != "node" && !l.Enforced && strings.Contains(l.Detail, "the domain pghardend_postgres_t is permissive") {
				said++
			}
		}
		return said == 2 && s.State != control.StateOK
	})
	// To build a policy can take an emulated machine many minutes, and to ask for the status what it needs for that.
	m.output(ctx, t, "until [ ! -e /var/lib/selinux/default/active/modules/400/permissive_pghardend_postgres_t ]; do sleep 2; done")
	m.bothReady(ctx, t)
	m.event(ctx, t, before, "selinux", "load_policy")
}

// Without the module the agent and its services have no domain: the kernel denies them everything, the repair of it included. So systemd loads it, and
// what runs gets its label back.
func checkModuleRemoved(ctx context.Context, t *testing.T, m *machine) {
	before := m.lastEvent(ctx, t)
	const pids = "systemctl show -P MainPID pghardend; head -qn 1 " + dataDir + "/postmaster.pid " + otherDir + "/postmaster.pid"
	agent, servers, _ := strings.Cut(m.output(ctx, t, pids), "\n")
	// A policy with ports of types that it does not know cannot be built.
	m.output(ctx, t, "sed -i /pghardend/d /var/lib/selinux/default/active/ports.local; semodule -r pghardend")
	m.awaitStatus(ctx, t, "status says that the module is gone, and nothing is shown as enforced", func(s control.Status) bool {
		for _, l := range s.Layers {
			if l.Enforced {
				return false
			}
		}
		return s.State != control.StateOK && strings.Contains(strings.Join(s.Reasons, " "), "the SELinux policy does not know pghardend_t: its module was removed")
	})
	m.output(ctx, t, "until [ -e /sys/fs/selinux/booleans/pghardend_drill ]; do sleep 2; done")
	m.bothReady(ctx, t)
	nowAgent, nowServers, _ := strings.Cut(m.output(ctx, t, pids), "\n")
	if nowAgent == agent || nowServers != servers {
		t.Errorf("the agent was %s and is %s, the servers were %q and are %q", agent, nowAgent, servers, nowServers)
	}
	for pid, want := range map[string]string{nowAgent: "system_u:system_r:pghardend_t:s0", strings.Fields(nowServers)[0]: "system_u:system_r:pghardend_postgres_t:s0:c1,c2"} {
		if label := m.output(ctx, t, "ps -o label= -p "+pid); label != want {
			t.Errorf("the process %s is %s, want %s", pid, label, want)
		}
	}
	if got := m.reads(ctx, t, dataDir+"/PG_VERSION"); got != "15" {
		t.Errorf("the server answers %q", got)
	}
	e := m.event(ctx, t, before, "selinux", "load_policy")
	if e.Who.Parent == "" || !strings.Contains(e.What, "the module was removed") {
		t.Errorf("the event is %+v by %+v", e, e.Who)
	}
}
