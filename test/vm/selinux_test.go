package vm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/test/vm/testvm"
)

const dataDir = "/var/lib/postgresql/15/main"

// TestSELinux is the agent in its own domain, under systemd, with both services in theirs, on a machine that enforces. The checks run in this order,
// on one machine.
func TestSELinux(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	m := boot(ctx, t, testvm.Options{Image: testvm.Debian12, SELinux: "enforcing"})
	m.confine(ctx, t)
	m.checks(t, []machineCheck{
		{"Domains", checkDomains},
		{"Enforced", checkEnforced},
		{"Attacks", checkAttacks},
		{"Work", checkSELinuxWork},
		{"Restored", checkRestored},
	})
}

type machineCheck struct {
	name string
	run  func(context.Context, *testing.T, *machine)
}

func (m *machine) checks(t *testing.T, list []machineCheck) {
	t.Helper()
	for _, check := range list {
		t.Run(check.name, func(t *testing.T) { check.run(t.Context(), t, m) })
	}
}

// The numbers of clients are given, since to ask a server (a launch of its own) can take an emulated machine longer than the agent waits.
const selinuxService = `    selinux: {mode: required}
    max_connections: 100
  pgpool:
    profile: pgpool
    user: postgres
    groups: [ssl-cert]
    command: [/usr/sbin/pgpool, -n, -f, /etc/pgpool2/pgpool.conf, -F, /etc/pgpool2/pcp.conf, -a, /etc/pgpool2/pool_hba.conf]
    landlock: {write: [/var/log/postgresql]}
    selinux: {mode: required}
    max_connections: 4
`

// withHelpers lets the server archive by a shell.
const withHelpers = `    helpers: [/usr/bin/dash, /usr/bin/cp]
    landlock: {write: [/var/lib/postgresql/archive]}
` + selinuxService + `selinux: {booleans: {pghardend_postgres_helpers: true, pghardend_helpers_bin: true}}
`

// confine configures both services, starts the agent and waits for them.
func (m *machine) confine(ctx context.Context, t *testing.T) {
	t.Helper()
	m.write(ctx, t, "/etc/postgresql/15/main/conf.d/vm.conf", "archive_mode = on\narchive_command = 'cp %p /var/lib/postgresql/archive/%f'\nfsync = off\n")
	m.write(ctx, t, "/tmp/pgpool.conf", `listen_addresses = 'localhost'
unix_socket_directories = '/run/postgresql'
pcp_listen_addresses = 'localhost'
pcp_socket_dir = '/run/postgresql'
pid_file_name = '/run/postgresql/pgpool.pid'
logdir = '/var/log/postgresql'
backend_hostname0 = '127.0.0.1'
backend_port0 = 5432
backend_weight0 = 1
sr_check_user = 'postgres'
health_check_user = 'postgres'
num_init_children = 4
port = 9999
`)
	m.output(ctx, t, `set -e
		cat /tmp/pgpool.conf >>/etc/pgpool2/pgpool.conf
		sed -i '1i host all,replication all 127.0.0.1/32 trust' /etc/postgresql/15/main/pg_hba.conf
		install -d -o postgres -g postgres -m 700 /var/lib/postgresql/archive
		restorecon -RF /var/lib/postgresql /etc/pghardend
		# The kernel writes each denial to its log.
		sysctl -qw kernel.printk_ratelimit=0`)
	m.configure(ctx, t, selinuxService)
	m.output(ctx, t, "systemctl start pghardend")
	m.bothReady(ctx, t)
}

func (m *machine) bothReady(ctx context.Context, t *testing.T) {
	t.Helper()
	m.awaitStatus(ctx, t, "both services are ready and all is right", func(s control.Status) bool {
		ready := 0
		for _, service := range s.Services {
			if service.State == "ready" {
				ready++
			}
		}
		return ready == 2 && s.State == control.StateOK
	})
}

// denied are the denials since the mark of our domains, the agent's own included.
func (m *machine) denied(ctx context.Context, t *testing.T, mark string) string {
	t.Helper()
	return m.output(ctx, t, sinceMark(mark)+" | grep 'avc:  denied' | grep pghardend || true")
}

// mark is a line in the kernel's log, and what sinceMark wants. A log that has run over has lost it, and perhaps denials: that fails.
func (m *machine) mark(ctx context.Context, t *testing.T) string {
	t.Helper()
	mark := rand.Text()
	m.output(ctx, t, "echo "+mark+" >/dev/kmsg")
	return mark
}

// bootMark stands for all that is left in the kernel's log.
const bootMark = ""

func sinceMark(mark string) string {
	if mark == bootMark {
		return "dmesg"
	}
	return "dmesg >/tmp/dmesg && grep -q " + mark + " /tmp/dmesg || { echo 'the log has run over' >&2; exit 1; }; sed '0,/" + mark + "/d' /tmp/dmesg"
}

func checkDomains(ctx context.Context, t *testing.T, m *machine) {
	if mode := m.output(ctx, t, "getenforce"); mode != "Enforcing" {
		t.Fatalf("SELinux is %s", mode)
	}
	// pgpool accepts connections before it has forked all of its children.
	m.output(ctx, t, "until [ $(pgrep -c -x pgpool) -ge 5 ]; do sleep 0.2; done")
	domains := map[string]int{}
	for _, line := range strings.Split(m.output(ctx, t, "ps -e -o label=,comm= | grep -E ' (postgres|pgpool|pghardend)$'"), "\n") {
		domains[strings.Join(strings.Fields(line), " ")]++
	}
	for want, least := range map[string]int{
		"system_u:system_r:pghardend_t:s0 pghardend": 1, "system_u:system_r:pghardend_postgres_t:s0 postgres": 6, "system_u:system_r:pghardend_pgpool_t:s0 pgpool": 5,
	} {
		if domains[want] < least {
			t.Errorf("%d processes are %q, want %d or more", domains[want], want, least)
		}
		delete(domains, want)
	}
	if len(domains) > 0 {
		t.Errorf("others: %v", domains)
	}
}

// What status and verify say, and that nothing was denied from the boot to here: rules, launches, readiness.
func checkEnforced(ctx context.Context, t *testing.T, m *machine) {
	status, err := m.status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"node", "postgres", "pgpool"} {
		if l := layer(t, status, subject, "selinux"); !l.Configured || !l.Enforced {
			t.Errorf("selinux of %s is not enforced: %s", subject, l.Detail)
		}
	}
	if said := m.output(ctx, t, "pghardend verify"); !strings.Contains(said, "checks passed") {
		t.Error(said)
	}
	if d := m.denied(ctx, t, bootMark); d != "" {
		t.Errorf("denied:\n%s", d)
	}
}

// attackLine is the record that a denied act leaves. Root attacks where the uid alone would stop it.
var attackLines = []struct{ act, user, record string }{
	{"A36 shell", "postgres", `{ execute } .*:shell_exec_t:s0 tclass=file`},
	{"A38 library", "postgres", `{ map } .*:pghardend_postgres_data_t:s0 tclass=file`},
	{"A40 dropped", "postgres", `{ execute } .*:pghardend_postgres_data_t:s0 tclass=file`},
	{"A40 loader", "postgres", `{ execute_no_trans } .*:ld_so_t:s0 tclass=file`},
	{"A40 memfd", "postgres", `{ execute } .*:pghardend_postgres_tmpfs_t:s0 tclass=file`},
	{"A42 ptrace", "postgres", `{ ptrace } .* tclass=process`},
	{"A42 memory", "postgres", `{ ptrace } .* tclass=process`},
	{"A42 process_vm_readv", "postgres", `{ ptrace } .* tclass=process`},
	{"A46 alg", "root", `{ create } .* tclass=alg_socket`},
	{"A46 packet", "root", `{ create } .* tclass=packet_socket`},
	{"A46 raw", "root", `{ create } .* tclass=rawip_socket`},
	{"A46 vsock", "root", `{ create } .* tclass=vsock_socket`},
	{"A46 netlink audit", "root", `{ create } .* tclass=netlink_audit_socket`},
	{"A46 netlink netfilter", "root", `{ create } .* tclass=netlink_netfilter_socket`},
	{"A49 pg_hba.conf", "postgres", `{ append } .*:postgresql_etc_t:s0 tclass=file`},
	{"A49 configuration", "root", `{ search } .*:pghardend_conf_t:s0 tclass=dir`},
	{"A50 program", "root", `{ write } .*:bin_t:s0 tclass=file`},
	{"A50 unit", "root", `{ search } .*:systemd_unit_t:s0 tclass=dir`},
	{"A50 agent's socket", "root", `{ search } .*:pghardend_runtime_t:s0 tclass=dir`},
}

// checkAttacks runs each act in the server's domain with every other layer off: no filter, no Landlock, all capabilities where it is root. The control
// is the same user's same act outside of the domain.
func checkAttacks(ctx context.Context, t *testing.T, m *machine) {
	m.output(ctx, t, "install -m 0755 /payload/attack /usr/local/lib/attack && chcon -t pghardend_postgres_exec_t /usr/local/lib/attack && "+
		"install -o postgres -g postgres -m 0755 /usr/bin/true "+dataDir+"/dropped && restorecon -F "+dataDir+"/dropped")
	// Pipes have the level of who made them, and one of an administrator is out of the domain's reach.
	attack := func(user, domain string) map[string]string {
		out := m.output(ctx, t, fmt.Sprintf(`cd / && runcon -l s0 bash -c '%s %s /usr/local/lib/attack %s/dropped $(pgrep -o -P $(head -n 1 %[3]s/postmaster.pid)) </dev/null 2>&1 | cat'`,
			map[string]string{"postgres": "setpriv --reuid postgres --regid postgres --clear-groups"}[user], domain, dataDir))
		results := map[string]string{}
		for _, line := range strings.Split(out, "\n") {
			name, result, _ := strings.Cut(line, "\t")
			results[name] = result
		}
		return results
	}
	for _, user := range []string{"postgres", "root"} {
		control := attack(user, "")
		mark := m.mark(ctx, t)
		confined := attack(user, "runcon -t pghardend_postgres_t -l s0")
		denied := m.denied(ctx, t, mark)
		for _, a := range attackLines {
			if a.user != user {
				continue
			}
			t.Run(a.act, func(t *testing.T) {
				if control[a.act] != "done" {
					t.Errorf("unconfined it gives %q: this shows nothing", control[a.act])
				}
				if confined[a.act] == "done" || confined[a.act] == "" {
					t.Errorf("in the domain it gives %q", confined[a.act])
				}
				records := regexp.MustCompile(`avc:  denied  `+a.record+` .*`).FindAllString(denied, -1)
				same := 0 // acts that leave the same record, each its own
				for _, other := range attackLines {
					if other.record == a.record {
						same++
					}
				}
				if len(records) < same || !strings.Contains(records[0], "comm=\"attack\"") || !strings.Contains(records[0], ":pghardend_postgres_t:s0 tcontext") {
					t.Fatalf("%d records like %s, want %d, in\n%s", len(records), a.record, same, denied)
				}
				t.Log(confined[a.act], records[0])
			})
		}
	}
	// What the agent makes of the same records.
	status, err := m.status(ctx)
	if err != nil || len(status.Denials.Last) == 0 {
		t.Errorf("status has no denials: %v", err)
	}
	m.output(ctx, t, "rm /usr/local/lib/attack "+dataDir+"/dropped")
}

// All that a server does, with a helper for the archive: nothing is denied.
func checkSELinuxWork(ctx context.Context, t *testing.T, m *machine) {
	mark := m.mark(ctx, t)
	m.configure(ctx, t, withHelpers)
	m.output(ctx, t, "restorecon -RF /etc/pghardend && systemctl reload pghardend && pghardend stop --service postgres && pghardend start --service postgres")
	m.bothReady(ctx, t)
	bin := "/usr/lib/postgresql/15/bin/"
	as := func(what string) string {
		return m.output(ctx, t, "cd / && runcon -l s0 runuser -u postgres -- "+bin+what)
	}
	as("pgbench -q -i -s 1 -h 127.0.0.1 postgres")
	as("pgbench -n -c 3 -t 30 -h 127.0.0.1 postgres")
	as("pgbench -n -c 3 -t 30 -h 127.0.0.1 -p 9999 postgres") // by pgpool
	as(`psql -wXAtc "SET parallel_setup_cost=0; SET parallel_tuple_cost=0; SET min_parallel_table_scan_size=0; SELECT sum(abalance) FROM pgbench_accounts"`)
	as(`psql -wXAtc "VACUUM (FULL, ANALYZE) pgbench_accounts"`)
	as("pg_basebackup -w -h 127.0.0.1 -X stream -D /var/tmp/backup")
	as(`psql -wXAtc "SELECT pg_switch_wal()"`)
	m.output(ctx, t, "until ls /var/lib/postgresql/archive | grep -q .; do sleep 0.2; done")
	if label := m.output(ctx, t, "ls -Z /var/lib/postgresql/archive | head -n 1"); !strings.Contains(label, ":pghardend_postgres_archive_t:s0 ") {
		t.Errorf("the archive has %s", label)
	}
	m.output(ctx, t, "pghardend stop --service postgres && pghardend start --service postgres")
	m.bothReady(ctx, t)
	m.output(ctx, t, "systemctl restart pghardend")
	m.bothReady(ctx, t)
	m.output(ctx, t, "pghardend verify >/tmp/verify || { tail -n 30 /tmp/verify; exit 3; }")
	if d := m.denied(ctx, t, mark); d != "" {
		t.Errorf("denied:\n%s", d)
	}
}

// checkRestored changes one thing after the other that the confinement rests on.
func checkRestored(ctx context.Context, t *testing.T, m *machine) {
	for _, c := range []struct{ name, act, restored, resource, who string }{
		{"Permissive", "setenforce 0", "getenforce | grep -q Enforcing", "selinux", "setenforce"},
		{"Label", "chcon -t tmp_t " + dataDir, "ls -dZ " + dataDir + " | grep -q pghardend_postgres_data_t", "selinux", "chcon"},
		{"Boolean", "setsebool pghardend_helpers_bin=0", "getsebool pghardend_helpers_bin | grep -q on$", "selinux", "setsebool"},
		{"Port", "semanage port -d -p tcp 9898", "grep -q ' 9898 ' /var/lib/selinux/default/active/ports.local", "selinux", "load_policy"},
		{"Rules", "iptables -F PGHARDEND-IN", "iptables -S PGHARDEND-IN | grep -q ^-A", "firewall", "iptables"},
	} {
		t.Run(c.name, func(t *testing.T) { m.restored(t.Context(), t, c.act, c.restored, c.resource, c.who) })
	}
	t.Run("Daemon", func(t *testing.T) {
		before := m.output(ctx, t, "systemctl show -P MainPID pghardend; head -n 1 "+dataDir+"/postmaster.pid")
		m.output(ctx, t, "kill -9 $(systemctl show -P MainPID pghardend)")
		m.bothReady(ctx, t)
		after := m.output(ctx, t, "systemctl show -P MainPID pghardend; head -n 1 "+dataDir+"/postmaster.pid")
		agent, server, _ := strings.Cut(before, "\n")
		if now, still, _ := strings.Cut(after, "\n"); now == agent || still != server {
			t.Errorf("agent and server were %q, are %q", before, after)
		}
		checkDomains(ctx, t, m)
	})
}

// restored acts, waits until it is undone, and for the event that says who it was.
func (m *machine) restored(ctx context.Context, t *testing.T, act, restored, resource, who string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	before := m.lastEvent(ctx, t)
	m.output(ctx, t, act)
	m.output(ctx, t, "until "+restored+"; do sleep 0.2; done")
	e := m.event(ctx, t, before, resource, who)
	t.Logf("open for %.0f ms at most, by %s: %s", e.OpenMS, e.Who, e.What)
}

func (m *machine) lastEvent(ctx context.Context, t *testing.T) control.Event {
	t.Helper()
	var e control.Event
	last := m.output(ctx, t, "pghardend events --json | tail -n 1")
	if err := json.Unmarshal([]byte(last), &e); err != nil {
		t.Fatalf("%v: %s", err, last)
	}
	return e
}

// event waits for one of a resource after another, by a command.
func (m *machine) event(ctx context.Context, t *testing.T, after control.Event, resource, who string) control.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		all := m.output(ctx, t, "pghardend events --json")
		for _, line := range strings.Split(all, "\n") {
			var e control.Event
			if json.Unmarshal([]byte(line), &e) == nil && e.Seq > after.Seq && e.Resource == resource && e.Who != nil && strings.HasPrefix(e.Who.Command, who) {
				return e
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no event of %s by %s in %s", resource, who, all)
		case <-time.After(500 * time.Millisecond):
		}
	}
}
