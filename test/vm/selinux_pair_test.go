package vm

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/test/vm/testvm"
)

// pairService asks for all: the number of clients for the reason at selinuxService.
const pairService = `    selinux: {mode: required}
    max_connections: 100
`

// TestReplicationUnderSELinux is an instance's two servers on machines of their own, both enforcing: the standby is made from the master by the rules of
// both agents, follows it, and is promoted. SELinux denies nothing of that. A machine that is no peer reaches neither server.
func TestReplicationUnderSELinux(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	network, err := testvm.NewNetwork(ctx, "10.20.1.1/24", "fd00:20:1::1/64")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	var options []testvm.Options
	for n := range 2 {
		options = append(options, testvm.Options{Image: testvm.Debian12, SELinux: "enforcing", Network: network,
			Addresses: []string{fmt.Sprintf("10.20.1.1%d/24", n), fmt.Sprintf("fd00:20:1::1%d/64", n)}})
	}
	pair := bootAll(ctx, t, options...)
	master, standby := pair[0], pair[1]
	for n, m := range pair {
		m.node = fmt.Sprintf("pg-%d", n)
		m.configure(ctx, t, pairService)
		// The kernel writes each denial to its log.
		m.output(ctx, t, "sysctl -qw kernel.printk_ratelimit=0; [ $(getenforce) = Enforcing ]")
	}
	// The rules of the boot, which let it get a base backup from its peer.
	standby.output(ctx, t, "restorecon -RF /etc/pghardend && systemctl start pghardend-boot")
	marks := map[*machine]string{master: master.mark(ctx, t), standby: standby.mark(ctx, t)}
	master.newCluster(ctx, t)
	master.output(ctx, t, "systemctl start pghardend")
	master.ready(ctx, t)

	for _, check := range []struct {
		name string
		run  func(context.Context, *testing.T)
	}{
		{"Standby", func(ctx context.Context, t *testing.T) { makeStandby(ctx, t, standby) }},
		{"Domains", func(ctx context.Context, t *testing.T) { checkPairDomains(ctx, t, pair) }},
		{"Replay", func(ctx context.Context, t *testing.T) { checkReplay(ctx, t, master, standby) }},
		{"Enforced", func(ctx context.Context, t *testing.T) { checkPairEnforced(ctx, t, pair) }},
		{"Promotion", func(ctx context.Context, t *testing.T) { checkPromotion(ctx, t, standby) }},
		{"NothingDenied", func(ctx context.Context, t *testing.T) {
			for m, mark := range marks {
				m.deniesNothing(ctx, t, mark)
			}
		}},
		{"Stranger", func(ctx context.Context, t *testing.T) { checkStranger(ctx, t, network, master) }},
	} {
		if !t.Run(check.name, func(t *testing.T) { check.run(t.Context(), t) }) {
			return // the next ones need it
		}
	}
}

// newCluster makes the server's cluster anew, as an administrator does: initdb runs, and its files get the labels of the policy.
func (m *machine) newCluster(ctx context.Context, t *testing.T) {
	t.Helper()
	m.output(ctx, t, `set -e
		cd /
		pg_dropcluster 15 main
		pg_createcluster 15 main -- --no-sync >/dev/null
		cat >/etc/postgresql/15/main/conf.d/vm.conf <<-END
			listen_addresses = '*'
			fsync = off
		END
		sed -i '1i host all,replication all samenet trust\nhost all all 127.0.0.1/32 trust' /etc/postgresql/15/main/pg_hba.conf
		restorecon -RF /var/lib/postgresql /etc/postgresql /etc/pghardend`)
}

// makeStandby has the rules of both machines in the way, not yet the agent of the standby.
func makeStandby(ctx context.Context, t *testing.T, m *machine) {
	if out := m.output(ctx, t, "iptables -S INPUT; systemctl is-active pghardend || true"); !strings.Contains(out, "PGHARDEND-IN") || !strings.HasSuffix(out, "inactive") {
		t.Fatalf("not the state to begin with: %s", out)
	}
	m.output(ctx, t, `set -e
		cd /
		rm -rf `+dataDir+`
		runuser -u postgres -- /usr/lib/postgresql/15/bin/pg_basebackup -w -h 10.20.1.10 -X stream -c fast -N -R -D `+dataDir+`
		restorecon -RF /var/lib/postgresql
		sed -i '1i host all all 127.0.0.1/32 trust' /etc/postgresql/15/main/pg_hba.conf
		printf "listen_addresses = '*'\nfsync = off\n" >/etc/postgresql/15/main/conf.d/vm.conf
		restorecon -RF /etc/postgresql
		systemctl start pghardend`)
	m.ready(ctx, t)
}

// ask is sql by TCP and with the level of a service: an administrator's is cut off from the Unix socket (README of policies/selinux).
func (m *machine) ask(ctx context.Context, t *testing.T, query string) string {
	t.Helper()
	return m.output(ctx, t, fmt.Sprintf(`cd / && runcon -l s0 runuser -u postgres -- /usr/lib/postgresql/15/bin/psql -h 127.0.0.1 -wXAtc "%s"`, query))
}

func checkPairDomains(ctx context.Context, t *testing.T, pair []*machine) {
	receiver := 0
	for _, m := range pair {
		processes := m.output(ctx, t, "ps -e -o label=,args= | grep -E '[p]ostgres|[p]ghardend'")
		for _, line := range strings.Split(processes, "\n") {
			label, args, _ := strings.Cut(line, " ")
			want := "system_u:system_r:pghardend_postgres_t:s0"
			if strings.Contains(args, "/usr/bin/pghardend") {
				want = "system_u:system_r:pghardend_t:s0"
			}
			if label != want {
				t.Errorf("%s: %q, want %s", m.node, line, want)
			}
			if strings.Contains(args, "walreceiver") || strings.Contains(args, "walsender") {
				receiver++
			}
		}
	}
	if receiver != 2 {
		t.Errorf("%d processes of replication, want one on each", receiver)
	}
}

// checkReplay writes on the master and awaits it on the standby.
func checkReplay(ctx context.Context, t *testing.T, master, standby *machine) {
	bench := "cd / && runcon -l s0 runuser -u postgres -- /usr/lib/postgresql/15/bin/pgbench -h 127.0.0.1 "
	master.output(ctx, t, bench+"-q -i -s 1 postgres")
	master.output(ctx, t, bench+"-n -c 3 -t 30 postgres")
	if state := master.ask(ctx, t, "SELECT state, client_addr FROM pg_stat_replication"); state != "streaming|10.20.1.11" {
		t.Errorf("the standby is %q", state)
	}
	at := master.ask(ctx, t, "SELECT pg_current_wal_lsn()")
	standby.output(ctx, t, fmt.Sprintf(`cd /; until [ "$(runcon -l s0 runuser -u postgres -- /usr/lib/postgresql/15/bin/psql -h 127.0.0.1 -wXAtc "SELECT pg_last_wal_replay_lsn() >= '%s'")" = t ]; do sleep 0.2; done`, at))
	if got := standby.ask(ctx, t, "SELECT pg_is_in_recovery(), (SELECT count(*) FROM pgbench_history)"); got != "t|90" {
		t.Errorf("the standby has %s, want t|90", got)
	}
}

func checkPairEnforced(ctx context.Context, t *testing.T, pair []*machine) {
	for _, m := range pair {
		status := m.awaitStatus(ctx, t, m.node+" is all right", func(s control.Status) bool { return s.State == control.StateOK })
		for _, of := range []struct{ subject, name string }{{"node", "netfilter"}, {"node", "selinux"}, {"postgres", "selinux"}, {"postgres", "seccomp"}, {"postgres", "landlock"}} {
			if l := layer(t, status, of.subject, of.name); !l.Configured || !l.Enforced {
				t.Errorf("%s: %s of %s is not enforced: %s", m.node, of.name, of.subject, l.Detail)
			}
		}
	}
}

func checkPromotion(ctx context.Context, t *testing.T, m *machine) {
	if got := m.ask(ctx, t, "SELECT pg_promote()"); got != "t" {
		t.Fatalf("pg_promote says %s", got)
	}
	m.ask(ctx, t, "INSERT INTO pgbench_history (tid) VALUES (1)")
	m.awaitStatus(ctx, t, "the new master is all right", func(s control.Status) bool { return s.State == control.StateOK })
}

// deniesNothing: no record of a denial since the mark, of whatever domain, and one of an act that is denied.
func (m *machine) deniesNothing(ctx context.Context, t *testing.T, mark string) {
	t.Helper()
	all := sinceMark(mark) + " | grep 'avc:  denied' || true"
	if records := m.output(ctx, t, all); records != "" {
		t.Errorf("%s: denied:\n%s", m.node, records)
	}
	m.output(ctx, t, "cd / && ! runcon -l s0 -t pghardend_postgres_t /usr/bin/true")
	if records := m.output(ctx, t, all); !strings.Contains(records, "{ entrypoint }") {
		t.Errorf("%s: what is denied leaves no record: %q", m.node, records)
	}
}

// checkStranger connects from the network's namespace, which is no peer. The control is the same server with the rules gone.
func checkStranger(ctx context.Context, t *testing.T, network *testvm.Network, m *machine) {
	reaches := func(address string) bool {
		// Answered or not within 3 seconds: a packet that is dropped has no answer.
		return exec.CommandContext(ctx, "ip", "netns", "exec", network.Namespace, "timeout", "3", "bash", "-c", "exec 3<>/dev/tcp/"+address+"/5432").Run() == nil
	}
	addresses := []string{"10.20.1.10", "fd00:20:1::10"}
	for _, address := range addresses {
		if reaches(address) {
			t.Errorf("a stranger reaches %s", address)
		}
	}
	m.output(ctx, t, "systemctl stop pghardend && pghardend teardown")
	for _, address := range addresses {
		if !reaches(address) {
			t.Errorf("without rules a stranger does not reach %s either: this shows nothing", address)
		}
	}
}
