// Package vm has the tests that need a booted machine: systemd, kernels and servers of Debian 12 and 13, reboots. They run as root, by make test-vm.
package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/test/vm/testvm"
)

const peers = `version: 1
instance: orders-prod
nodes:
  - {name: pg-0, role: postgres, addresses: [10.20.1.10, "fd00:20:1::10"]}
  - {name: pg-1, role: postgres, addresses: [10.20.1.11, "fd00:20:1::11"]}
  - {name: pool-0, role: pgpool, addresses: [10.20.1.20, "fd00:20:1::20"]}
networks:
  control_plane: [10.0.0.0/24]
  applications: [10.50.0.0/16]
`

// machine is a booted machine with the agent installed and not started.
type machine struct {
	*testvm.VM
	image testvm.Image
	node  string // of the peer list; pg-0 unless a test says otherwise
}

// boot boots an image and installs the agent.
func boot(ctx context.Context, t *testing.T, o testvm.Options) *machine {
	t.Helper()
	return bootAll(ctx, t, o)[0]
}

// bootAll boots several at once, and installs the agent in each.
func bootAll(ctx context.Context, t *testing.T, options ...testvm.Options) []*machine {
	t.Helper()
	dir := payload(ctx, t)
	for i := range options {
		options[i].Payload = dir
	}
	machines := bootBare(ctx, t, options...)
	for _, m := range machines {
		m.install(ctx, t)
	}
	return machines
}

// bootBare boots images as they are. The machines end with the test.
func bootBare(ctx context.Context, t *testing.T, options ...testvm.Options) []*machine {
	t.Helper()
	machines := make([]*machine, len(options))
	var group errgroup.Group
	for i, o := range options {
		o.Progress = os.Stderr
		group.Go(func() error {
			vm, err := testvm.Boot(ctx, o)
			if err == nil {
				machines[i] = &machine{VM: vm, image: o.Image, node: "pg-0"}
			}
			return err
		})
	}
	err := group.Wait()
	for _, m := range machines {
		if m != nil {
			t.Cleanup(func() { m.end(ctx, t) })
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return machines
}

func (m *machine) end(ctx context.Context, t *testing.T) {
	if t.Failed() {
		log, _ := m.Run(context.WithoutCancel(ctx), "systemctl --failed; journalctl -b --no-pager -o short-monotonic | tail -n 60", nil)
		t.Logf("the end of the machine's journal:\n%s", log.Stdout)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// payload has the programs, compiled now, and the units.
func payload(ctx context.Context, t *testing.T) string {
	t.Helper()
	root, err := testvm.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, args := range [][]string{
		{"go", "build", "-buildvcs=false", "-trimpath", "-o", filepath.Join(dir, "pghardend"), "./cmd/pghardend"},
		{"env", "CGO_ENABLED=0", "go", "build", "-buildvcs=false", "-trimpath", "-o", filepath.Join(dir, "attack"), "./test/vm/attack"},
		{"cp", "-r", "packaging/systemd", dir},
		{"scripts/selinux.sh", "module"},
		{"cp", "build/selinux/pghardend.pp", dir},
	} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("cannot run %v: %v: %s", args, err, out)
		}
	}
	return dir
}

// install does what the package does, in a second. The package itself has tests of its own.
func (m *machine) install(ctx context.Context, t *testing.T) {
	t.Helper()
	m.output(ctx, t, `set -e
		install -m 0755 /payload/pghardend /usr/bin/pghardend
		install -m 0644 /payload/systemd/*.service /payload/systemd/*.path /etc/systemd/system/
		# The tests' services are the agent's children.
		install -D -m 0644 /payload/systemd/children.conf /etc/systemd/system/pghardend.service.d/children.conf
		install -m 0644 /payload/systemd/tmpfiles.conf /usr/lib/tmpfiles.d/pghardend.conf
		systemd-tmpfiles --create pghardend.conf
		mkdir -p /etc/pghardend
		[ ! -e /sys/fs/selinux/enforce ] || restorecon -RF /usr/bin/pghardend /etc/systemd/system /etc/pghardend /run/pghardend /var/lib/pghardend
		systemctl daemon-reload
		systemctl enable pghardend-boot pghardend`)
	m.write(ctx, t, "/etc/pghardend/peers.yaml", peers)
	m.configure(ctx, t, "")
}

// configure writes pghardend.yaml, with more lines for the service.
func (m *machine) configure(ctx context.Context, t *testing.T, service string) {
	t.Helper()
	version := m.image.Postgres()
	groups := m.output(ctx, t, "id -Gn postgres | tr ' ' '\\n' | grep -v '^postgres$' | paste -sd,")
	m.write(ctx, t, "/etc/pghardend/pghardend.yaml", fmt.Sprintf(`version: 1
node: %[4]s
services:
  postgres:
    profile: postgres
    user: postgres
    groups: [%[2]s]
    command: [/usr/lib/postgresql/%[1]s/bin/postgres, -D, /var/lib/postgresql/%[1]s/main, -c, config_file=/etc/postgresql/%[1]s/main/postgresql.conf]
    limits: {nofile: 65536, core: 0, nproc: 2000}
    start_timeout: 5m
%[3]s`, version, groups, service, m.node))
}

func (m *machine) output(ctx context.Context, t *testing.T, script string) string {
	t.Helper()
	out, err := m.Output(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (m *machine) write(ctx context.Context, t *testing.T, path, text string) {
	t.Helper()
	if err := m.Write(ctx, path, 0o644, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// sql asks the server as its superuser. An administrator's own level, s0-s0:c0.c1023, keeps the server off the socket, see policies/selinux/README.md.
func (m *machine) sql(ctx context.Context, t *testing.T, query string) string {
	t.Helper()
	return m.output(ctx, t, fmt.Sprintf("cd /; level=; [ ! -e /sys/fs/selinux/enforce ] || level='runcon -l s0'; $level runuser -u postgres -- /usr/lib/postgresql/%s/bin/psql -XAtc \"%s\"", m.image.Postgres(), query))
}

// status is what the command says; its exit status is in it as the state.
func (m *machine) status(ctx context.Context) (control.Status, error) {
	var s control.Status
	r, err := m.Run(ctx, "pghardend status --json", nil)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
		return s, fmt.Errorf("%w: %s", err, r.Stdout+r.Stderr)
	}
	return s, nil
}

// awaitStatus asks until the status is as it should be.
func (m *machine) awaitStatus(ctx context.Context, t *testing.T, what string, good func(control.Status) bool) control.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		s, err := m.status(ctx)
		if err == nil && good(s) {
			return s
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within 5 minutes; last: %+v, %v", what, s, err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// ready waits until the service accepts connections and returns the first process of it.
func (m *machine) ready(ctx context.Context, t *testing.T) int {
	t.Helper()
	s := m.awaitStatus(ctx, t, "postgres is ready", func(s control.Status) bool {
		return len(s.Services) == 1 && s.Services[0].State == "ready" && s.Services[0].PID > 0
	})
	return s.Services[0].PID
}

// layer is the service's layer of this name.
func layer(t *testing.T, s control.Status, subject, name string) control.Layer {
	t.Helper()
	for _, l := range s.Layers {
		if l.Subject == subject && l.Name == name {
			return l
		}
	}
	t.Fatalf("no layer %s of %s in %+v", name, subject, s.Layers)
	return control.Layer{}
}

// fields are the lines of /proc/PID/status and the like by their names.
func fields(text string) map[string]string {
	out := map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			out[name] = strings.Join(strings.Fields(value), " ")
		}
	}
	return out
}
