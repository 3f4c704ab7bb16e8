package e2e

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/internal/testbed"
)

// snapshot is all rules and sets of a host, without counters. A set that was made anew shows by its initval.
func snapshot(t *testing.T, h *testbed.Host, backend string) string {
	t.Helper()
	rules := uncounted(run(t, h, fmt.Sprintf("iptables-%s-save && ip6tables-%[1]s-save", backend)))
	sets := strings.Split(strings.TrimSpace(run(t, h, "ipset save")), "\n")
	slices.Sort(sets)
	if !strings.Contains(rules, "pghardend:") || len(sets) < 10 {
		t.Fatalf("%s has hardly any rules or sets:\n%s\n%s", h.Name(), rules, sets)
	}
	return rules + "\n" + strings.Join(sets, "\n")
}

var initval = regexp.MustCompile(` initval 0x[0-9a-f]+`)

// sameRules fails unless two snapshots are the same.
func sameRules(t *testing.T, when, before, after string) {
	t.Helper()
	if d := cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")); d != "" {
		t.Errorf("%s rules or sets differ (-before +after):\n%s", when, d)
	}
}

// The roles of the servers are a fact of run time: a failover changes no rule and no set on any node, not even the crashed
// one's. Clients of pgpool write on when it is over.
func TestInstanceFailover(t *testing.T) {
	t.Parallel()
	eachBackendAtOnce(t, func(t *testing.T, backend string) {
		in := startInstance(t, testbed.InstanceSpec{Name: "failover", Backend: backend, Services: true})
		c, first := in.Primary()
		_, err := c.Pgbench(in.ctx, in.App(), in.PgpoolConninfo("pool-0"), "-i", "-q")
		must(t, err)
		in.awaitLimits(backend)
		before := in.snapshots(backend)
		w := in.startWriter("pool-1")
		w.await(3)

		start := time.Now()
		must(t, in.Failover(in.ctx))
		promoted := time.Now()
		c, second := in.Primary()
		if second == first {
			t.Fatal("nobody was promoted")
		}
		w.await(3)
		t.Logf("%s took over after %s; the writer's longest wait was %s", second.Name(), promoted.Sub(start).Round(time.Second), w.gap().Round(10*time.Millisecond))
		in.sameSnapshots("after the failover", backend, before)

		must(t, in.Rejoin(in.ctx))
		w.await(3)
		acknowledged := w.stop()
		must(t, in.AwaitReplay(in.ctx))
		in.sameSnapshots("after the crashed node has come back", backend, before)
		for _, p := range in.Pools {
			for _, at := range families(p.Host) {
				if r, err := c.Pgbench(in.ctx, in.App(), p.Conninfo(at), "-n", "-c", "2", "-t", "10"); err != nil || r.Processed != 20 || r.Failed != 0 {
					t.Errorf("pgbench by %s: %+v, %v", at, r, err)
				}
			}
		}
		// What was written since the promotion is there on both; of before, asynchronous replication may lose some.
		for _, at := range []func() (*testbed.Cluster, *testbed.Host){in.Primary, in.Standby} {
			c, h := at()
			got, err := c.PsqlSocket(in.ctx, h, "SELECT coalesce(string_agg(n::text, ' ' ORDER BY n), '') FROM written")
			must(t, err)
			have := strings.Fields(got)
			for _, a := range acknowledged {
				if a.when.After(promoted) && !slices.Contains(have, fmt.Sprint(a.n)) {
					t.Errorf("%s has lost write %d", h.Name(), a.n)
				}
			}
		}
	})
}

// awaitLimits waits until the servers have said how many connections they take, which changes rules.
func (in *instance) awaitLimits(backend string) {
	in.t.Helper()
	for _, at := range []func() (*testbed.Cluster, *testbed.Host){in.Primary, in.Standby} {
		_, h := at()
		must(in.t, testbed.Await(in.ctx, "the limits of "+h.Name(), func(context.Context) error {
			if !strings.Contains(snapshot(in.t, h, backend), "--connlimit-upto") {
				return errors.New("the rules have none")
			}
			return nil
		}))
	}
}

func (in *instance) snapshots(backend string) map[string]string {
	in.t.Helper()
	all := map[string]string{}
	for _, h := range in.Nodes() {
		all[h.Name()] = snapshot(in.t, h, backend)
	}
	return all
}

func (in *instance) sameSnapshots(when, backend string, before map[string]string) {
	in.t.Helper()
	for name, now := range in.snapshots(backend) {
		sameRules(in.t, when+", on "+name+",", before[name], now)
	}
}

// writer is a client that writes numbers, one after the other, and tries each until it is acknowledged.
type writer struct {
	in     *instance
	cancel context.CancelFunc
	done   chan struct{}

	mu   sync.Mutex
	acks []ack
	err  error // of the last try
}

type ack struct {
	n    int
	when time.Time
}

func (in *instance) startWriter(pool string) *writer {
	in.t.Helper()
	c, _ := in.Primary()
	_, err := c.Psql(in.ctx, in.App(), in.PgpoolConninfo(pool), "CREATE TABLE written (n int PRIMARY KEY)")
	must(in.t, err)
	ctx, cancel := context.WithCancel(in.ctx)
	w := &writer{in: in, cancel: cancel, done: make(chan struct{})}
	in.t.Cleanup(func() { w.stop() })
	go func() {
		defer close(w.done)
		for n := 0; ctx.Err() == nil; {
			try, stop := context.WithTimeout(ctx, 10*time.Second)
			_, err := c.Psql(try, in.App(), in.PgpoolConninfo(pool), fmt.Sprintf("INSERT INTO written VALUES (%d) ON CONFLICT DO NOTHING", n))
			stop()
			w.mu.Lock()
			w.err = err
			if err == nil {
				w.acks = append(w.acks, ack{n, time.Now()})
				n++
			}
			w.mu.Unlock()
		}
	}()
	return w
}

// await waits until n more writes have been acknowledged.
func (w *writer) await(n int) {
	w.in.t.Helper()
	ctx, cancel := context.WithTimeout(w.in.ctx, time.Minute)
	defer cancel()
	first := -1
	must(w.in.t, testbed.Await(ctx, "the client's writes", func(context.Context) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if first < 0 {
			first = len(w.acks)
		}
		if len(w.acks) < first+n {
			return errors.Join(fmt.Errorf("%d acknowledged", len(w.acks)-first), w.err)
		}
		return nil
	}))
}

// gap is the longest time between two acknowledged writes.
func (w *writer) gap() (longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := 1; i < len(w.acks); i++ {
		longest = max(longest, w.acks[i].when.Sub(w.acks[i-1].when))
	}
	return longest
}

func (w *writer) stop() []ack {
	w.cancel()
	<-w.done
	return w.acks
}
