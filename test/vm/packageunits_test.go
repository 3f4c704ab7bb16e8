package vm

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/test/vm/testvm"
)

// dropIn installs a drop-in as the comment in it says, for the machine's version of the server.
func (p *packaged) dropIn(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	root, err := testvm.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "packaging/systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^#\s+(install -D .*)$`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("%s does not say how it is installed", name)
	}
	p.output(ctx, t, strings.NewReplacer("@15-main", "@"+p.image.Postgres()+"-main", "postgresql-15.service", "postgresql-"+p.image.Postgres()+".service").
		Replace(string(m[1]))+" && systemctl daemon-reload")
}

// debiansOwnUnit: with the drop-in Debian's unit starts the server confined, and what works with that unit goes on working.
func (p *packaged) debiansOwnUnit(ctx context.Context, t *testing.T) {
	v := p.image.Postgres()
	unit := "postgresql@" + v + "-main.service"
	// The image has Debian's unit disabled; invoke-rc.d(8), by which the package starts it, leaves such a one alone.
	p.output(ctx, t, "systemctl disable --now pghardend@postgres 2>&1; systemctl enable postgresql.service 2>&1")
	p.dropIn(ctx, t, "postgresql-debian.conf")
	last := ""
	for _, act := range []string{
		"systemctl start " + unit,
		"systemctl restart " + unit,
		"pg_ctlcluster " + v + " main restart",
		"pg_ctlcluster " + v + " main stop && pg_ctlcluster " + v + " main start",
		// What an upgrade of the server's package runs.
		"DEBIAN_FRONTEND=noninteractive dpkg-reconfigure postgresql-" + v,
		"systemctl restart postgresql.service",
	} {
		p.output(ctx, t, act+" 2>&1")
		p.confinedBy(ctx, t, unit)
		now := p.postmaster(ctx, t)
		if now == last {
			t.Errorf("%s: the server is still process %s", act, now)
		}
		last = now
	}
	p.output(ctx, t, "pg_ctlcluster "+v+" main reload 2>&1 && systemctl reload "+unit)
	if clusters := p.output(ctx, t, "pg_lsclusters -h"); !strings.Contains(clusters, " online ") {
		t.Errorf("pg_lsclusters says %q", clusters)
	}
	p.output(ctx, t, "systemctl stop "+unit+" && rm -r /etc/systemd/system/"+unit+".d && systemctl daemon-reload")
}

// pgdgUnit has the shape of the unit in PGDG's packages.
const pgdgUnit = `[Unit]
Description=PostgreSQL database server
After=network-online.target

[Service]
Type=notify
User=postgres
Group=postgres
Environment=PGDATA=/var/lib/postgresql/17/main
OOMScoreAdjust=-1000
Environment=PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj
Environment=PG_OOM_ADJUST_VALUE=0
ExecStartPre=/usr/bin/test -d ${PGDATA}/base
ExecStart=/usr/pgsql-17/bin/postgres -D ${PGDATA} -c config_file=/etc/postgresql/17/main/postgresql.conf
ExecReload=/bin/kill -HUP $MAINPID
KillMode=mixed
KillSignal=SIGINT
TimeoutSec=0
TimeoutStartSec=0

[Install]
WantedBy=multi-user.target
`

// unitLikePGDGs stands in for PGDG's packages, which are Red Hat's: Debian's server in their place, started by a unit of their shape. The control is the unit
// without the drop-in.
func (p *packaged) unitLikePGDGs(ctx context.Context, t *testing.T) {
	unit := "postgresql-17.service"
	// Debian's own program goes: the drop-in would have it executable too, which the launch refuses.
	p.output(ctx, t, "mkdir -p /usr/pgsql-17 && cp -a /usr/lib/postgresql/17/bin /usr/lib/postgresql/17/lib /usr/pgsql-17/ && mv /usr/lib/postgresql/17/bin/postgres /root/")
	p.write(ctx, t, "/etc/systemd/system/"+unit, pgdgUnit)
	p.output(ctx, t, "systemctl daemon-reload && systemctl start "+unit)
	if seccomp := p.output(ctx, t, "grep ^Seccomp: /proc/$(systemctl show -P MainPID "+unit+")/status"); !strings.HasSuffix(seccomp, "\t0") {
		t.Errorf("without the drop-in the server has %q", seccomp)
	}
	p.output(ctx, t, "systemctl stop "+unit)

	p.write(ctx, t, "/etc/pghardend/pghardend.yaml", p.external("/usr/pgsql-17/bin/postgres", ""))
	p.output(ctx, t, "systemctl restart pghardend")
	p.dropIn(ctx, t, "postgresql-pgdg.conf")
	p.output(ctx, t, "systemctl start "+unit)
	p.confinedBy(ctx, t, unit)
	p.output(ctx, t, "systemctl restart "+unit)
	p.confinedBy(ctx, t, unit)
	p.output(ctx, t, "systemctl stop "+unit+" && rm -r /etc/systemd/system/"+unit+"* && systemctl daemon-reload")
	// And back, with one server again.
	p.output(ctx, t, "rm -r /usr/pgsql-17 && mv /root/postgres /usr/lib/postgresql/17/bin/")

	p.write(ctx, t, "/etc/pghardend/pghardend.yaml", p.external(p.debianProgram(), ""))
	p.output(ctx, t, "systemctl restart pghardend && systemctl start pghardend@postgres")
	p.confinedBy(ctx, t, "pghardend@postgres.service")
}
