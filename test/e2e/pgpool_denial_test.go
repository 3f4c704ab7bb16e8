package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/testbed"
)

// learn knows a live pgpool's processes by their types, with the calls of each, and the shipped profile has all
// that they use.
func TestLearnPgpool(t *testing.T) {
	t.Parallel()
	in := startInstance(t, testbed.InstanceSpec{Name: "poollearn", Services: true})
	pool := in.Pools[0]
	s := &slice{t: t, ctx: in.ctx, agent: in.Agent(pool.Host.Name())}
	file := filepath.Join(launchDir(t), "recording.json")
	stop := learnStart(t, s, "--service", "pgpool", "--output", file) // the last --service counts
	in.poolService(pool, "stop")
	in.poolService(pool, "start")
	in.awaitPool(pool, "the other pgpools", func() error {
		if info := in.watchdog(pool); !watchdogComplete.MatchString(info) {
			return fmt.Errorf("the watchdog says:\n%s", info)
		}
		return nil
	})
	in.poolWork(pool)
	code, said := stop()
	if code != 0 || strings.Contains(said, "NOT COMPLETE") || strings.Contains(said, "not started") {
		t.Fatalf("exit code %d\n%s", code, said)
	}
	r := readRecording(t, file)
	for _, name := range []string{"main", "client backend", "watchdog", "lifecheck", "heartbeat", "pcp", "worker process", "health check"} {
		if len(r.Processes[name].Calls) == 0 {
			t.Errorf("nothing is recorded of %s", name)
		}
	}
	for name := range r.Processes {
		t.Logf("%s: %d calls", name, len(r.Processes[name].Calls))
	}
	// Landlock knows no UDP, whose ports are listed with TCP's: docs/learn.md.
	const heartbeat = "+ landlock: bind to port 9694, if that was TCP (heartbeat)\n"
	out := s.want(2, []string{heartbeat}, "learn", "--service", "pgpool", "--for", "10ms", "--merge", file, "--diff", "pgpool").Stdout
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "+ ") && line != heartbeat {
			t.Errorf("the profile lacks %s", line)
		}
	}
}

// A36: what pgpool may not execute is an event as well: here its own failover command, since nobody has
// declared the shell that it needs. Where it is declared nothing is denied.
func TestA36_BlockedFailoverCommandIsAnEvent(t *testing.T) {
	t.Parallel()
	in := startInstance(t, testbed.InstanceSpec{Name: "pooldenied", Services: true})
	pool := in.Pools[0]
	name := pool.Host.Name()
	s := &slice{t: t, ctx: in.ctx, agent: in.Agent(name)}
	s.awaitTraced()
	detach := func() {
		in.makeLeader(pool)
		if out, err := pool.PCP(in.ctx, "pcp_detach_node", "1").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		in.awaitPool(pool, "one server less", func() error {
			out, err := pool.PsqlSocket(in.ctx, "SHOW pool_nodes")
			if err == nil && !strings.Contains(out, "|down|") {
				err = fmt.Errorf("it shows:\n%s", out)
			}
			return err
		})
	}
	detach()
	if list := s.denialEvents(); len(list) > 0 {
		t.Errorf("with its helpers: %+v", list)
	}
	cfg := in.Config(name)
	service := cfg.Services["pgpool"]
	service.Helpers = nil
	cfg.Services["pgpool"] = service
	must(t, s.agent.WriteConfig(cfg))
	in.poolService(pool, "stop")
	in.poolService(pool, "start")
	must(t, s.agent.Await(in.ctx, "status ok", s.agent.OK))
	if out, err := pool.PCP(in.ctx, "pcp_attach_node", "1").CombinedOutput(); err != nil {
		t.Logf("%v\n%s", err, out) // it may be attached again since the start
	}
	detach()
	e := s.awaitDenial("blocked", "/bin/sh")
	if e.Resource != "pgpool" || e.Who == nil || !strings.HasPrefix(e.Who.Parent, "pgpool") {
		t.Errorf("%+v, by %+v", e, e.Who)
	}
}
