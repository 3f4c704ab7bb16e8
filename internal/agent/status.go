package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/internal/supervise"
)

// Status implements control.Backend. Layers of services are read from /proc
// for each call; the rules' state is that of the last pass.
func (a *Agent) Status(ctx context.Context) control.Status {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	d := a.desired.Load()
	snap := a.loop.Snapshot()
	s := control.Status{
		Version: a.version, Node: d.Self.Name, Role: d.Self.Role, Instance: d.Peers.Instance,
		State: control.StateOK, Reasons: []string{}, PID: os.Getpid(), Backend: a.fw.Backend(),
		Generation: snap.Generation, LastReconcile: snap.LastPass, LastLook: snap.LastLook, Alarms: a.alarms.source(),
		Services: []control.Service{}, Drift: []control.Drift{}, Warnings: []string{},
		Openings: a.source.openings.open(), Pending: a.source.conf.shown.Load(),
	}
	for _, p := range snap.Problems {
		s.Reasons = append(s.Reasons, fmt.Sprintf("%s: %s (since %s)", p.What, p.Text, p.Since.Format(time.RFC3339)))
	}
	if err := a.events.err(); err != nil {
		s.Reasons = append(s.Reasons, fmt.Sprintf("journal: %v", err))
	}
	a.rules.addOther(&s)
	s.Warnings = append(s.Warnings, a.metrics.warnings()...)
	denied, unheard := a.denials.state()
	s.Denials, s.Warnings = denied, append(s.Warnings, unheard...)
	s.Layers = append(s.Layers,
		netfilterLayer(snap, d.Config.Reconcile.Interval, a.fw.Backend(), &s),
		sysctlLayer(snap, d.Config.Reconcile.Interval, d.Config.Sysctl.Manage),
		a.selinux.layer(ctx, snap, d.Config.Reconcile.Interval))
	a.addOwnCgroup(ctx, d.Config, &s)
	for _, state := range a.serviceStates() {
		a.addService(ctx, d, state, &s)
	}
	for _, e := range snap.Events {
		s.Drift = append(s.Drift, driftOf(e))
	}
	if len(s.Reasons) > 0 {
		s.State = control.StateDegraded
	}
	return s
}

// addOther says what the backend that is not in use holds. Others may well use
// it, unless that makes our rules lie.
func (w *ruleWatch) addOther(s *control.Status) {
	if w == nil {
		return
	}
	switch other := w.other.Load(); {
	case other == nil || other.Empty():
	case other.Serious():
		s.Reasons = append(s.Reasons, "netfilter: "+other.String())
	default:
		s.Warnings = append(s.Warnings, other.String())
	}
}

// lookPatience is longer than a pass takes whose commands are slow but do end.
const lookPatience = 15 * time.Second

// overdue says whether the last look is so long ago that it proves nothing any more.
func overdue(snap reconcile.Snapshot, interval time.Duration) bool {
	return time.Since(snap.LastLook) > lookPatience+2*interval
}

// A fight over a resource that others change again and again: it is put right each
// time, but each time for a moment only.
const (
	fightSpan  = 10 * time.Second
	fightTimes = 3
	fightOpen  = fightSpan / 4 // not as it should be for so long, in all
)

// fought says for how much of the last fightSpan others had a resource their way,
// at most; 0 if that is no fight.
func fought(snap reconcile.Snapshot, resource string) time.Duration {
	var open time.Duration
	times := 0
	for _, e := range snap.Events {
		if e.Resource != resource || e.Cause != reconcile.CauseDrift || e.Repaired.IsZero() {
			continue
		}
		if since := time.Since(e.Repaired); since < fightSpan {
			times++
			open += min(time.Duration(e.OpenMS*float64(time.Millisecond)), fightSpan-since)
		}
	}
	if times < fightTimes || open < fightOpen {
		return 0
	}
	return min(open, fightSpan).Round(100 * time.Millisecond)
}

func foughtText(what string, open time.Duration) string {
	return fmt.Sprintf("others change %s again and again: put right each time, but wrong for up to %s of the last %s", what, open, fightSpan)
}

// netfilterLayer: connections that should have been cut count as well.
func netfilterLayer(snap reconcile.Snapshot, interval time.Duration, backend string, s *control.Status) control.Layer {
	l := control.Layer{Name: "netfilter", Subject: "node", Configured: true, Enforced: snap.Right(firewallName, connectionsName)}
	age, open := time.Since(snap.LastLook), fought(snap, firewallName)
	switch {
	case snap.Passes == 0:
		l.Detail = "no pass yet"
		s.Reasons = append(s.Reasons, "netfilter: the first pass has not ended yet")
	case overdue(snap, interval):
		l.Enforced = false
		l.Detail = fmt.Sprintf("last compared with the kernel %s ago", age.Round(time.Second))
		s.Reasons = append(s.Reasons, "netfilter: "+l.Detail+"; if it lasts, restart the daemon (services go on)")
	case l.Enforced && open > 0:
		l.Enforced = false
		l.Detail = foughtText("it", open)
		s.Reasons = append(s.Reasons, "netfilter: "+l.Detail+"; `pghardend events` shows what, and mostly who")
	case l.Enforced:
		l.Detail = fmt.Sprintf("rules and sets equal the plan, looked at %d ms ago, read back in full %.0f s ago (%s)",
			age.Milliseconds(), time.Since(snap.LastFull).Seconds(), backend)
	default:
		l.Detail = "not known to equal the plan, see the reasons"
	}
	return l
}

// sysctlLayer is looked at in the same ticks and passes, and netfilterLayer says if there
// was none.
func sysctlLayer(snap reconcile.Snapshot, interval time.Duration, managed bool) control.Layer {
	l := control.Layer{Name: "sysctl", Subject: "node", Configured: managed}
	open := fought(snap, sysctlName)
	switch {
	case !managed:
		l.Detail = "left to others (sysctl.manage: false)"
	case snap.Passes == 0:
		l.Detail = "no pass yet"
	case overdue(snap, interval) || !snap.Right(sysctlName):
		l.Detail = "not known to be as desired, see the reasons"
	case open > 0:
		l.Detail = foughtText("them", open)
	default:
		l.Enforced = true
		l.Detail = fmt.Sprintf("network settings are as desired, read back %d ms ago", time.Since(snap.LastLook).Milliseconds())
	}
	return l
}

func (a *Agent) addService(ctx context.Context, d *Desired, state supervise.Status, s *control.Status) {
	svc := control.Service{
		Name: state.Name, State: string(state.State), PID: state.PID, Since: state.Since,
		Adopted: state.Adopted, Restarts: state.Restarts, LastError: state.LastError,
	}
	spec, known := d.service(state.Name)
	switch {
	case !known && state.PID != 0:
		s.Reasons = append(s.Reasons, fmt.Sprintf("service %s is not in the configuration any more but still runs; `pghardend stop --service %s` ends it", state.Name, state.Name))
	case !known && state.State != supervise.StateStopped:
		s.Reasons = append(s.Reasons, fmt.Sprintf("service %s is not in the configuration any more and is %s; `pghardend stop --service %s` ends the attempts", state.Name, state.State, state.Name))
	case known && state.State != supervise.StateReady:
		s.Reasons = append(s.Reasons, strings.TrimSuffix(fmt.Sprintf("service %s is %s: %s", state.Name, state.State, state.LastError), ": "))
	}
	if known && state.PID != 0 {
		findings, pids, err := verifyTree(ctx, spec, state.PID)
		svc.Processes = pids
		if err != nil {
			s.Reasons = append(s.Reasons, fmt.Sprintf("service %s cannot be verified: %v", state.Name, err))
		} else {
			s.Layers = append(s.Layers, serviceLayers(state.Name, pids, findings)...)
			addProfile(ctx, d.Config, state, s)
			addLandlock(ctx, spec, state.PID, s)
			addMounts(ctx, spec, state.PID, s)
			addSELinux(ctx, spec, state.PID, s)
			addCgroup(ctx, spec, state.PID, s)
			s.Reasons = append(s.Reasons, failures(state.Name, withoutComplaints(findings))...)
			a.complain.addTo(spec, s)
		}
	}
	s.Services = append(s.Services, svc)
}

// verifyTree checks every process of a service and counts them. A child that
// ends meanwhile is none of them.
func verifyTree(ctx context.Context, spec launch.Spec, root int) (findings []launch.Finding, processes int, err error) {
	pids, err := launch.Tree(ctx, root)
	if err != nil {
		return nil, 0, err
	}
	for _, pid := range pids {
		f, err := launch.Verify(ctx, spec, pid)
		if errors.Is(err, launch.ErrVanished) && pid != root {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		findings = append(findings, f...)
		processes++
	}
	return findings, processes, nil
}

// FindingText is a finding as one line for people.
func FindingText(f launch.Finding) string {
	return fmt.Sprintf("process %d: %s %s is %s, not %s", f.PID, f.Layer, f.Check, f.Got, f.Want)
}

// serviceLayers sums the findings up by layer, in the order of first mention.
func serviceLayers(service string, pids int, findings []launch.Finding) []control.Layer {
	var layers []control.Layer
	at := map[string]int{}
	checks := map[string]int{}
	for _, f := range findings {
		i, ok := at[f.Layer]
		if !ok {
			i = len(layers)
			at[f.Layer] = i
			layers = append(layers, control.Layer{Name: f.Layer, Subject: service, Configured: true, Enforced: true})
		}
		checks[f.Layer]++
		if !f.OK {
			layers[i].Enforced = false
			layers[i].Detail = FindingText(f)
		}
	}
	for i, l := range layers {
		if l.Enforced {
			layers[i].Detail = fmt.Sprintf("%d checks on %d processes, read from /proc just now", checks[l.Name], pids)
		}
	}
	return layers
}

func failures(service string, findings []launch.Finding) []string {
	var out []string
	for _, f := range findings {
		if !f.OK {
			out = append(out, "service "+service+": "+FindingText(f))
		}
	}
	return out
}
