package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/metrics"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/audit"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// agentMetrics joins the daemon to its metrics.
type agentMetrics struct {
	metrics *metrics.Metrics
	listen  string // empty: the control socket alone
	log     *slog.Logger
	owners  *owners
	deaf    atomic.Pointer[string] // why listen is not served; nil: it is

	open map[uint64]bool // events that are counted and not over; the loop's goroutine owns it
}

// maxOpenEvents bounds what is remembered; the loop keeps fewer events.
const maxOpenEvents = 1024

func newMetrics(a *Agent) *agentMetrics {
	return &agentMetrics{
		metrics: metrics.New(a.version, a.fw.Backend(), metricsSource{a}),
		listen:  a.desired.Load().Config.Metrics.Listen,
		log:     a.log,
		owners:  newOwners(a.processOwners, a.programOwner),
		open:    map[uint64]bool{},
	}
}

func (m *agentMetrics) warnings() []string {
	if m == nil {
		return nil
	}
	if why := m.deaf.Load(); why != nil {
		return []string{*why}
	}
	return nil
}

func (m *agentMetrics) handler() http.Handler { return m.metrics.Handler() }

// run serves metrics.listen, if it is configured, until ctx is done. What fails is tried again; nothing else depends on it.
func (m *agentMetrics) run(ctx context.Context) error {
	m.keep(ctx, slog.LevelWarn, "metrics are not served on metrics.listen", func() error {
		if m.listen == "" {
			<-ctx.Done()
			return nil
		}
		m.deaf.Store(nil)
		err := loopbackFault(ctx)
		if err == nil {
			err = m.metrics.Serve(ctx, m.listen)
		}
		if err != nil {
			why := fmt.Sprintf("metrics: not served on %s, tried again each minute: %v", m.listen, err)
			m.deaf.Store(&why)
		}
		return err
	})
	return nil
}

// loopbackFault says whether the unit keeps the agent from IP, which nobody who listens
// would notice: systemd's filter drops what arrives, and denies what is sent.
func loopbackFault(ctx context.Context) error {
	conn, err := new(net.ListenConfig).ListenPacket(ctx, "udp", "127.0.0.1:0")
	if err != nil {
		return nil // without IPv4 there is nothing to find out
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.WriteTo([]byte{0}, conn.LocalAddr()); errors.Is(err, unix.EPERM) {
		return fmt.Errorf("the agent's unit sends nothing over IP (IPAddressDeny=any): give it IPAddressAllow=localhost in a drop-in: %w", err)
	}
	return nil
}

// againPause is between two attempts at what metrics can do without.
const againPause = time.Minute

// keep calls f again and again until ctx is done, and says once why it failed.
func (m *agentMetrics) keep(ctx context.Context, level slog.Level, what string, f func() error) {
	said := ""
	for {
		err := f()
		if ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			m.log.Log(ctx, level, what, "error", err)
		}
		if !wait(ctx, againPause) {
			return
		}
	}
}

// denied counts a denial of a service's process, and says whose it was and the call's
// name. Other confined programs of the host are none of our business.
func (m *agentMetrics) denied(ctx context.Context, d audit.Denial) (service, syscall string) {
	service = m.owners.of(ctx, d.PID, d.Exe)
	if service == "" || d.Action == audit.ActionLog {
		return "", ""
	}
	syscall = d.Syscall
	if !d.Known { // any number may be tried
		syscall = unknownCall
	}
	m.metrics.Denied(1, service, syscall)
	return service, syscall
}

// lost counts an overrun of a source of events.
func (m *agentMetrics) lost() { m.metrics.Lost() }

// event counts an event of the loop, which is told of it when it is new and again
// when it is over. It does not block.
func (m *agentMetrics) event(e reconcile.Event) {
	if !m.open[e.ID] {
		m.metrics.Drift(e.Resource, e.Cause)
	}
	switch {
	case e.Repaired.IsZero():
		if len(m.open) >= maxOpenEvents {
			clear(m.open)
		}
		m.open[e.ID] = true
	default:
		delete(m.open, e.ID)
		if e.Cause == reconcile.CauseDrift {
			m.metrics.Repaired(e.Resource, time.Duration(e.OpenMS*float64(time.Millisecond)))
		}
	}
}

// metricsSource answers scrapes.
type metricsSource struct{ a *Agent }

// State implements metrics.Source.
func (s metricsSource) State(ctx context.Context) metrics.State {
	status := s.a.Status(ctx)
	s.a.denials.count(ctx)
	snap := s.a.loop.Snapshot()
	state := metrics.State{
		Degraded:      status.State != control.StateOK,
		LastReconcile: snap.LastFull,
		LastClean:     snap.LastClean,
		Sets:          map[string]int{},
	}
	for _, l := range status.Layers {
		if l.Configured {
			state.Layers = append(state.Layers, metrics.Layer{Name: l.Name, Subject: l.Subject, Enforced: l.Enforced})
		}
	}
	for _, p := range snap.Problems {
		if p.What == reconcile.ProblemConflict {
			state.Conflicts++
		}
	}
	d := s.a.desired.Load()
	if snap.Right(firewallName) && !overdue(snap, d.Config.Reconcile.Interval) { // then the sets were seen to be what they should be
		for _, set := range d.Rules.Sets {
			state.Sets[set.Name] = len(set.Members) + len(stillOpen(set.Openings, time.Now()))
		}
	}
	return state
}

// Packets implements metrics.Source.
func (s metricsSource) Packets(ctx context.Context) ([]metrics.Packets, error) {
	counters, err := s.a.fw.Counters(ctx)
	known := tags(s.a.desired.Load().Rules)
	var all []metrics.Packets
	for _, c := range counters {
		flow := c.Flow
		if !known[flow] { // a rule of somebody else in one of our chains, until it is removed
			flow = "foreign"
		}
		all = append(all, metrics.Packets{
			Family: c.Family.String(), Direction: c.Direction, Flow: flow, Verdict: c.Verdict, Packets: c.Packets, Bytes: c.Bytes,
		})
	}
	return all, err
}

var ruleTag = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`--comment "?pghardend:([a-z0-9-]+)`) })

// tags are the flows and reasons that our rules speak of.
func tags(rules firewall.Ruleset) map[string]bool {
	known := map[string]bool{}
	for _, table := range rules.Tables {
		for _, chain := range table.Chains {
			for _, rule := range chain.Rules {
				if match := ruleTag().FindStringSubmatch(rule.String()); match != nil {
					known[match[1]] = true
				}
			}
		}
	}
	return known
}
