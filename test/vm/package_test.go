package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/test/vm/testvm"
)

// TestF17_PackageOnDebian13 is the life of the package on a machine that is knocked at all the time.
func TestF17_PackageOnDebian13(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	lan := newLAN(ctx, t)
	p := bootPackaged(ctx, t, testvm.Options{Image: testvm.Debian13, Network: lan.network, Addresses: []string{"10.20.1.10/24"}}, "1.1")
	p.lan = lan
	p.run(t, []check{
		{"Inert", p.inert},
		{"ThreeCommands", p.threeCommands},
		{"MetricsOverIP", p.metricsOverIP},
		{"UpgradeUnderLoad", p.upgradeUnderLoad},
		{"DebiansOwnUnit", p.debiansOwnUnit},
		{"UnitLikePGDGs", p.unitLikePGDGs},
		{"RemoveAndPurge", p.removeAndPurge},
	})
}

// TestF17_PackageWithSELinux: the policy of the machine is Debian's own, so the package brings the module, and all labels are Debian's before.
func TestF17_PackageWithSELinux(t *testing.T) {
	t.Parallel()
	p := bootPackaged(t.Context(), t, testvm.Options{Image: testvm.Debian12, SELinux: "enforcing", BasePolicy: true})
	p.service = "    selinux: {mode: required}\n"
	p.run(t, []check{
		{"Inert", p.inert},
		{"ModuleIsLoaded", p.moduleIsLoaded},
		{"ThreeCommands", p.threeCommands},
		{"Domains", p.domains},
		{"PurgeLeavesDomains", p.purgeLeavesDomains},
	})
}

// packaged is a machine with packages to install and with the distribution's own server at work.
type packaged struct {
	*machine
	lan     *lan   // nil: none
	service string // more lines of the service's configuration
	readme  []string
	before  host
}

// host is what an installation must not change.
type host struct{ rules, running, server string }

type check struct {
	name string
	run  func(context.Context, *testing.T)
}

// run stops at the first check that fails: each goes on where the last one ended.
func (p *packaged) run(t *testing.T, checks []check) {
	t.Helper()
	for _, c := range checks {
		if !t.Run(c.name, func(t *testing.T) { c.run(t.Context(), t) }) {
			return
		}
	}
}

// bootPackaged boots a machine that has packages of 1.0 and more versions at hand.
func bootPackaged(ctx context.Context, t *testing.T, o testvm.Options, more ...string) *packaged {
	t.Helper()
	o.Payload = packages(ctx, t, append(more, "1.0")...)
	p := &packaged{machine: bootBare(ctx, t, o)[0], readme: readmeCommands(t)}
	p.configurePeers(ctx, t)
	return p
}

// packages builds a package of each version from a copy of the sources, and returns the directory that they are in.
func packages(ctx context.Context, t *testing.T, versions ...string) string {
	t.Helper()
	root, err := testvm.Root()
	if err != nil {
		t.Fatal(err)
	}
	nfpm, err := filepath.Glob(filepath.Join(root, "build/bin/nfpm-*"))
	if err != nil || len(nfpm) != 1 {
		t.Fatalf("nfpm: %v, %v; `make test-vm` installs it", nfpm, err)
	}
	sources, dir := t.TempDir(), t.TempDir()
	for _, script := range append([]string{`git -c safe.directory='*' ls-files -co --exclude-standard -z | tar -c --null -T - | tar -x -C "$SOURCES"`},
		each(versions, `cd "$SOURCES" && PACKAGE_VERSION=%s PGHARDEND_RELEASE=1 PACKAGERS=deb scripts/package.sh && cp build/packages/*.deb "$TO"`)...) {
		cmd := exec.CommandContext(ctx, "bash", "-c", script)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "SOURCES="+sources, "TO="+dir, "NFPM="+nfpm[0], "SOURCE_DATE_EPOCH=1700000000", "GOFLAGS=-buildvcs=false")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("cannot build the packages: %v\n%s", err, out)
		}
	}
	return dir
}

func each(words []string, format string) []string {
	var out []string
	for _, w := range words {
		out = append(out, fmt.Sprintf(format, w))
	}
	return out
}

// readmeCommands are those that the README gives for the way from a package to a server that runs.
func readmeCommands(t *testing.T) []string {
	t.Helper()
	root, err := testvm.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)\n## Install\n.*?\n```\n(.*?)\n```\n").FindSubmatch(text)
	if m == nil {
		t.Fatal("the README has no commands below Install")
	}
	commands := strings.Split(string(m[1]), "\n")
	if len(commands) != 3 {
		t.Fatalf("%d commands in the README, want 3: %q", len(commands), commands)
	}
	return commands
}

// command runs one of the README where the package and both files lie.
func (p *packaged) command(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	fmt.Fprintf(os.Stderr, "vm: %s: %s\n", p.image, p.readme[n])
	t.Log(p.output(ctx, t, "cd /root/deploy && "+p.readme[n]+" 2>&1"))
}

// configurePeers puts the files beside the package, and starts the server as it was before anybody thought of an agent.
func (p *packaged) configurePeers(ctx context.Context, t *testing.T) {
	t.Helper()
	p.output(ctx, t, `mkdir -p /root/deploy && ln -s /payload/pghardend_1.0-1_amd64.deb /root/deploy/
		echo "listen_addresses = '*'" >/etc/postgresql/`+p.image.Postgres()+`/main/conf.d/vm.conf
		systemctl start postgresql.service`)
	p.write(ctx, t, "/root/deploy/peers.yaml", packagePeers)
}

const packagePeers = `version: 1
instance: orders-prod
nodes:
  - {name: pg-0, role: postgres, addresses: [10.20.1.10]}
  - {name: pool-0, role: pgpool, addresses: [10.20.1.20]}
networks:
  control_plane: [10.20.1.32/28]
  applications: [10.50.0.0/16]
`

// external is the configuration of the README: a service that a unit starts.
func (p *packaged) external(program, more string) string {
	v := p.image.Postgres()
	return fmt.Sprintf(`version: 1
node: pg-0
services:
  postgres:
    profile: postgres
    user: postgres
    groups: [ssl-cert]
    command: [%s, -D, /var/lib/postgresql/%[2]s/main, -c, config_file=/etc/postgresql/%[2]s/main/postgresql.conf]
    start: external
    max_connections: 100
    landlock: {write: [/var/log/postgresql]}
%[3]s`, program, v, p.service+more)
}

func (p *packaged) debianProgram() string {
	return "/usr/lib/postgresql/" + p.image.Postgres() + "/bin/postgres"
}

func (p *packaged) postmaster(ctx context.Context, t *testing.T) string {
	t.Helper()
	return p.output(ctx, t, "head -n 1 /var/lib/postgresql/"+p.image.Postgres()+"/main/postmaster.pid")
}

func (p *packaged) look(ctx context.Context, t *testing.T) host {
	t.Helper()
	return host{
		rules:   p.output(ctx, t, "iptables-save | grep -v ^#; ip6tables-save | grep -v ^#; ipset list -n"),
		running: p.output(ctx, t, "systemctl list-units --no-legend --plain --state=running --type=service | cut -d ' ' -f 1; systemctl list-units --no-legend --failed"),
		server:  p.postmaster(ctx, t),
	}
}

// An installation starts nothing, stops nothing and lets in whom it was before.
func (p *packaged) inert(ctx context.Context, t *testing.T) {
	p.look(ctx, t) // iptables-save loads its modules, and shows their tables from then on
	p.before = p.look(ctx, t)
	p.command(ctx, t, 0)
	if after := p.look(ctx, t); after != p.before {
		t.Errorf("the installation has changed the host from\n%+v\nto\n%+v", p.before, after)
	}
	if state := p.output(ctx, t, "systemctl is-enabled pghardend; systemctl is-active pghardend || true"); state != "enabled\ninactive" {
		t.Errorf("the agent is %q", state)
	}
	if p.lan != nil {
		p.lan.want(ctx, t, map[string]bool{stranger: true, peer: true, operator: true}, "10.20.1.10:5432", "10.20.1.10:22")
	}
}

// From the files to a server that runs confined, with the rules in place, and the distribution's own unit out of the way.
func (p *packaged) threeCommands(ctx context.Context, t *testing.T) {
	p.write(ctx, t, "/root/deploy/pghardend.yaml", p.external(p.debianProgram(), ""))
	p.command(ctx, t, 1)
	p.command(ctx, t, 2)
	if state := p.output(ctx, t, "systemctl is-active pghardend pghardend@postgres; systemctl is-active postgresql.service postgresql@"+p.image.Postgres()+"-main.service || true"); state != "active\nactive\ninactive\ninactive" {
		t.Errorf("the units are %q", state)
	}
	p.confinedBy(ctx, t, "pghardend@postgres.service")
	if p.lan != nil {
		p.lan.want(ctx, t, map[string]bool{stranger: false, peer: true, operator: false}, "10.20.1.10:5432")
		p.lan.want(ctx, t, map[string]bool{stranger: false, peer: false, operator: true}, "10.20.1.10:22")
	}
}

// confinedBy waits until the agent has the server of a unit, and has the kernel asked for each layer.
func (p *packaged) confinedBy(ctx context.Context, t *testing.T, unit string) {
	t.Helper()
	pid := fmt.Sprint(p.ready(ctx, t))
	if main := p.output(ctx, t, "systemctl show -P MainPID "+unit); main != pid || p.postmaster(ctx, t) != pid {
		t.Errorf("the agent has process %s, the main process of %s is %s, and postmaster.pid says %s", pid, unit, main, p.postmaster(ctx, t))
	}
	p.awaitStatus(ctx, t, "all is enforced", func(s control.Status) bool { return s.State == control.StateOK })
	p.output(ctx, t, "pghardend verify >/tmp/verify || { cat /tmp/verify; exit 3; }")
	p.output(ctx, t, "pghardend status >/tmp/status || { cat /tmp/status; exit 3; }")
	for _, group := range []struct{ file, want string }{{"cpu.weight", "400"}, {"memory.low", ""}} {
		if got := p.output(ctx, t, "cat /sys/fs/cgroup/pghardend.slice/"+group.file); got == "0" || group.want != "" && got != group.want {
			t.Errorf("%s of pghardend.slice is %s, want %s", group.file, got, group.want)
		}
	}
	if in := p.output(ctx, t, "cat /proc/"+pid+"/cgroup"); !strings.HasPrefix(in, "0::/pghardend.slice/") {
		t.Errorf("the server is in %s", in)
	}
	if answer := p.sql(ctx, t, "SELECT 40+2"); answer != "42" {
		t.Errorf("the server says %q", answer)
	}
}

// metricsOverIP: the unit sends nothing over IP, status says what to do for metrics.listen, and that does it.
func (p *packaged) metricsOverIP(ctx context.Context, t *testing.T) {
	const path, drop = "/etc/pghardend/pghardend.yaml", "/etc/systemd/system/pghardend.service.d/metrics.conf"
	before := p.output(ctx, t, "cat "+path)
	restart := func(more string) {
		p.write(ctx, t, path, before+"\n"+more)
		p.output(ctx, t, "systemctl daemon-reload && systemctl restart pghardend")
	}
	warned := func(s control.Status) bool {
		return strings.Contains(strings.Join(s.Warnings, "\n"), "IPAddressAllow=localhost")
	}
	restart("metrics: {listen: 127.0.0.1:9188}\n")
	p.awaitStatus(ctx, t, "metrics cannot be reached", warned)
	p.write(ctx, t, drop, "[Service]\nIPAddressAllow=localhost\n")
	restart("metrics: {listen: 127.0.0.1:9188}\n")
	p.output(ctx, t, `until exec 3<>/dev/tcp/127.0.0.1/9188; do sleep 0.2; done 2>/dev/null; printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3; grep -m 1 ^pghardend_ <&3`)
	p.awaitStatus(ctx, t, "no word of metrics", func(s control.Status) bool { return s.State == control.StateOK && !warned(s) })
	p.output(ctx, t, "rm "+drop)
	restart("")
	p.ready(ctx, t)
}

// load has clients come, work and go until it is told to stop, and looks at the rules all the time. Its rate is such that an emulated machine has time left.
const load = `rm -f /tmp/stop /tmp/load /tmp/least
	(until [ -e /tmp/stop ]; do runuser -u postgres -- BIN/pgbench -n -c 2 -t 20 -R 10 postgres >>/tmp/load 2>&1 || echo "failed: exit status" >>/tmp/load; done; touch /tmp/load.done) >/dev/null 2>&1 &
	(least=1000; until [ -e /tmp/stop ]; do n=$(iptables -w -S PGHARDEND-IN | wc -l); [ $n -ge $least ] || { least=$n; echo $n >/tmp/least; }; sleep 0.5; done) >/dev/null 2>&1 &`

// Upgrade and downgrade, with clients at work and a stranger at the door.
func (p *packaged) upgradeUnderLoad(ctx context.Context, t *testing.T) {
	bin := "/usr/lib/postgresql/" + p.image.Postgres() + "/bin"
	p.output(ctx, t, "runuser -u postgres -- "+bin+"/pgbench -q -i -s 1 postgres")
	postmaster, rules := p.postmaster(ctx, t), p.output(ctx, t, "iptables -w -S PGHARDEND-IN | wc -l")
	knocks := p.lan.knock(t, stranger, "10.20.1.10:22222")
	p.output(ctx, t, strings.ReplaceAll(load, "BIN", bin))
	p.output(ctx, t, "until grep -q tps /tmp/load; do sleep 0.2; done")
	for _, version := range []string{"1.1", "1.0"} {
		agent := p.output(ctx, t, "systemctl show -P MainPID pghardend")
		p.output(ctx, t, "dpkg -i /payload/pghardend_"+version+"-1_amd64.deb 2>&1")
		if said := p.output(ctx, t, "pghardend version"); !strings.Contains(said, version) {
			t.Errorf("after the installation of %s it is %s", version, said)
		}
		if now := p.output(ctx, t, "systemctl show -P MainPID pghardend; systemctl is-active pghardend"); now == agent+"\nactive" || !strings.HasSuffix(now, "\nactive") {
			t.Errorf("the agent was process %s, is %q", agent, now)
		}
		p.ready(ctx, t)
	}
	p.output(ctx, t, "touch /tmp/stop; until [ -e /tmp/load.done ]; do sleep 0.2; done")
	if answers := knocks.stop(t); answers > 0 {
		t.Errorf("the stranger had %d answers", answers)
	}
	if least := p.output(ctx, t, "cat /tmp/least"); least != rules {
		t.Errorf("at least %s rules were there all the time, of %s", least, rules)
	}
	said := p.output(ctx, t, "cat /tmp/load")
	runs := len(regexp.MustCompile(`(?m)^number of failed transactions: 0 \(0\.000%\)$`).FindAllString(said, -1))
	if all := strings.Count(said, "number of failed transactions"); all == 0 || runs != all || strings.Contains(said, "failed: exit status") {
		t.Errorf("%d of %d runs without a failed transaction:\n%s", runs, all, said)
	}
	t.Logf("%d runs of 40 transactions", runs)
	if now := p.postmaster(ctx, t); now != postmaster {
		t.Errorf("the postmaster is %s, was %s", now, postmaster)
	}
	p.confinedBy(ctx, t, "pghardend@postgres.service")
}

// Removal takes the agent alone, says what it leaves, and a purge takes the rest but no data. The rules are there until the next boot.
func (p *packaged) removeAndPurge(ctx context.Context, t *testing.T) {
	postmaster := p.postmaster(ctx, t)
	said := p.output(ctx, t, "dpkg -r pghardend 2>&1")
	for _, what := range []string{"firewall rules", "running services", "/var/lib/pghardend", "pghardend teardown"} {
		if !strings.Contains(said, what) {
			t.Errorf("the removal does not speak of %s:\n%s", what, said)
		}
	}
	left := "ls /etc/pghardend/peers.yaml /var/lib/pghardend/last-good/peers.yaml"
	p.output(ctx, t, left)
	p.lan.want(ctx, t, map[string]bool{stranger: false, peer: true, operator: false}, "10.20.1.10:5432")
	if answer := p.sql(ctx, t, "SELECT 40+2"); answer != "42" || p.postmaster(ctx, t) != postmaster {
		t.Errorf("the server says %q, and was process %s", answer, postmaster)
	}
	p.output(ctx, t, "dpkg -P pghardend 2>&1")
	p.output(ctx, t, "! ls -d /etc/pghardend /var/lib/pghardend /run/pghardend && ls /var/lib/postgresql/"+p.image.Postgres()+"/main/PG_VERSION")
	p.lan.want(ctx, t, map[string]bool{stranger: false, peer: true, operator: false}, "10.20.1.10:5432")
}

func (p *packaged) moduleIsLoaded(ctx context.Context, t *testing.T) {
	if modules := p.output(ctx, t, "semodule -l | grep -cx pghardend; getenforce"); modules != "1\nEnforcing" {
		t.Errorf("modules and mode are %q", modules)
	}
	for path, typ := range map[string]string{
		"/usr/bin/pghardend": "pghardend_exec_t", "/etc/pghardend/pghardend.yaml": "pghardend_conf_t",
		"/var/lib/pghardend": "pghardend_var_lib_t", "/run/pghardend": "pghardend_runtime_t",
		// The distribution's server has those of the distribution until it is confined.
		p.debianProgram(): "postgresql_exec_t", dataDir + "/PG_VERSION": "postgresql_db_t",
	} {
		if label := p.output(ctx, t, "stat -c %C "+path); !strings.Contains(label, ":"+typ+":") {
			t.Errorf("%s has %s, want %s", path, label, typ)
		}
	}
}

// domains: the server and all that it has made before are where the module wants them, and nothing was denied on the way.
func (p *packaged) domains(ctx context.Context, t *testing.T) {
	for _, want := range []string{"pghardend_t:s0 pghardend", "pghardend_postgres_t:s0 postgres"} {
		p.output(ctx, t, "ps -e -o label=,comm= | tr -s ' ' | grep -q ':"+want+"$'")
	}
	if others := p.output(ctx, t, "find "+dataDir+" -type f -not -context '*:pghardend_postgres_*' | head"); others != "" {
		t.Errorf("not labelled:\n%s", others)
	}
	p.output(ctx, t, "cd / && runcon -l s0 runuser -u postgres -- /usr/lib/postgresql/15/bin/pgbench -q -i -s 1 postgres")
	if d := p.denied(ctx, t, "0"); d != "" {
		t.Errorf("denied:\n%s", d)
	}
}

// A purge takes no domain away from a server that is at work in it.
func (p *packaged) purgeLeavesDomains(ctx context.Context, t *testing.T) {
	if said := p.output(ctx, t, "dpkg -P pghardend 2>&1"); !strings.Contains(said, "the SELinux module stays") {
		t.Errorf("the purge says:\n%s", said)
	}
	p.output(ctx, t, "semodule -l | grep -x pghardend && ps -e -o label=,comm= | tr -s ' ' | grep ':pghardend_postgres_t:s0 postgres$'")
	if answer := p.sql(ctx, t, "SELECT 40+2"); answer != "42" {
		t.Errorf("the server says %q", answer)
	}
	if d := p.denied(ctx, t, "0"); d != "" {
		t.Errorf("denied:\n%s", d)
	}
}
