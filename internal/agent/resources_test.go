package agent

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/firewall"
)

func TestConnectionsAreLookedAtWhenItMatters(t *testing.T) {
	now := time.Now()
	d := Desired{made: &buildMark{}}
	d.Firewall.Openings = []firewall.Opening{
		{From: netip.MustParsePrefix("10.0.0.1/32"), Proto: "tcp", Port: 22, Until: now.Add(10 * time.Second)},
		{From: netip.MustParsePrefix("10.0.0.2/32"), Proto: "tcp", Port: 22, Until: now.Add(time.Hour)},
	}
	var l looks
	if !l.due(d, now) {
		t.Error("not due at first")
	}
	if !l.due(d, now) {
		t.Error("due only once, though nobody looked")
	}
	l.done(d, now)
	if l.due(d, now.Add(time.Second)) {
		t.Error("due though nothing happened")
	}
	other := d
	other.made = &buildMark{}
	if !l.due(other, now.Add(time.Second)) {
		t.Error("not due after a change")
	}
	if l.due(d, now.Add(9*time.Second)) || !l.due(d, now.Add(10*time.Second)) {
		t.Error("due at another time than when an opening ends")
	}
	l.done(d, now.Add(10*time.Second))
	if l.due(d, now.Add(11*time.Second)) || !l.due(d, now.Add(10*time.Second+lookInterval)) {
		t.Error("due at another time than after the interval")
	}
	if wait, ok := l.again(now); !ok || wait != 0 || !l.due(d, now.Add(11*time.Second)) {
		t.Error("not due after rules were written")
	}
	// Another tool that removes our rules again and again must not keep us busy.
	if wait, ok := l.again(now.Add(againInterval / 4)); !ok || wait != againInterval*3/4 {
		t.Errorf("the second look in an interval: in %v, %v", wait, ok)
	}
	if _, ok := l.again(now.Add(againInterval / 2)); ok {
		t.Error("a third look in an interval")
	}
	// Rules that were put back during a look may have let somebody in after it.
	l.done(d, now)
	if !l.due(d, now) {
		t.Error("a look that rules were put back during counts")
	}
	l.done(d, now.Add(2*againInterval))
	if l.due(d, now.Add(2*againInterval)) {
		t.Error("the look after it does not count")
	}
}

func TestResourcesComeInOrder(t *testing.T) {
	a := &Agent{}
	d := mustBuild(t, configHead)
	names := func(d Desired) string {
		var list []string
		for _, r := range a.resources(d) {
			list = append(list, r.Name())
		}
		return strings.Join(list, " ")
	}
	if got := names(d); got != "sysctl firewall connections processes files cgroups" {
		t.Errorf("got %s", got)
	}
	if got := names(mustBuild(t, configHead+"sysctl: {manage: false}\n")); got != "firewall connections processes files cgroups" {
		t.Errorf("without sysctls: %s", got)
	}
}

// What was seen of the rules counts until others are wanted.
func TestRulesAreKeptByState(t *testing.T) {
	a := &Agent{}
	d := mustBuild(t, configHead)
	first := a.rulesFor(d)
	if a.rulesFor(d) != first {
		t.Error("a new resource for the same state")
	}
	if a.rulesFor(mustBuild(t, configHead)) == first {
		t.Error("the same resource for another state")
	}
}

// The files that a cheap look keeps open are opened again only if others are wanted.
func TestSysctlsKeepTheirFiles(t *testing.T) {
	a := &Agent{}
	d := mustBuild(t, configHead)
	first := a.sysctlsFor(d.Sysctls)
	if again := a.sysctlsFor(mustBuild(t, configHead).Sysctls); again != first {
		t.Error("a new resource for the same sysctls")
	}
	if other := a.sysctlsFor(d.Sysctls[1:]); other == first {
		t.Error("the same resource for others")
	}
	a.sysctls.close()
}

type strangePlan struct{}

func (strangePlan) Empty() bool    { return false }
func (strangePlan) String() string { return "strange" }

func TestResourcesApplyTheirOwnPlansOnly(t *testing.T) {
	for _, r := range []reconcile.Resource{&sysctlResource{}, &firewallResource{}, &connectionsResource{}} {
		contains(t, r.Apply(t.Context(), strangePlan{}), "cannot apply a agent.strangePlan to")
	}
}

func TestSysctlErrorsNameTheWayOut(t *testing.T) {
	if err := leaveHint(nil); err != nil {
		t.Error(err)
	}
	cause := errors.New("read-only file system")
	err := leaveHint(cause)
	if !errors.Is(err, cause) {
		t.Error("the cause is lost")
	}
	contains(t, err, "read-only file system", "sysctl.leave", "`sysctl: {manage: false}`")
}

func TestSysctlsFollowTheConfiguration(t *testing.T) {
	value := func(text, key string) string {
		for _, s := range mustBuild(t, configHead+text).Sysctls {
			if s.Key == key && !s.Leave {
				return s.Value
			}
		}
		return ""
	}
	const key = "net.ipv4.tcp_syncookies"
	for text, want := range map[string]string{
		"":                                 "1",
		"sysctl: {set: [" + key + "=2]}\n": "2",
		"sysctl: {leave: [" + key + "]}\n": "",
	} {
		if got := value(text, key); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// A connection of an opening that has ended is one too many, though the state
// was built while it was open.
func TestOpeningsEndByTheClock(t *testing.T) {
	now := time.Now()
	list := []firewall.Opening{{Port: 1, Until: now}, {Port: 2, Until: now.Add(time.Nanosecond)}}
	if got := stillOpen(list, now); len(got) != 1 || got[0].Port != 2 {
		t.Errorf("open: %+v", got)
	}
}

func TestConnectionsAreNotListedEachTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a list would fail
	d := Desired{made: &buildMark{}}
	r := &connectionsResource{want: d, looks: &looks{}}
	if _, err := r.Plan(ctx); err == nil {
		t.Error("no look at first")
	}
	r.looks.done(d, time.Now())
	if plan, err := r.Plan(ctx); plan != nil || !errors.Is(err, reconcile.ErrNotDue) {
		t.Errorf("%v, %v", plan, err)
	}
}

func TestUnwantedNeedsTheKernel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := unwanted(ctx, Desired{}); err == nil {
		t.Error("connections were listed after the end")
	}
}
