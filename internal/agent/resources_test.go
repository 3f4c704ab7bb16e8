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
	if !l.again(now) || !l.due(d, now.Add(11*time.Second)) {
		t.Error("not due after rules were written")
	}
	// Another tool that removes our rules again and again must not keep us busy.
	if l.again(now.Add(againInterval / 2)) {
		t.Error("a pass of its own twice in an interval")
	}
	if !l.again(now.Add(againInterval)) {
		t.Error("no pass of its own after the interval")
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
	if got := names(d); got != "sysctl firewall connections" {
		t.Errorf("at first: %s", got)
	}
	a.looks.done(d, time.Now())
	if got := names(d); got != "sysctl firewall" {
		t.Errorf("while connections need no look: %s", got)
	}
	if got := names(mustBuild(t, configHead+"sysctl: {manage: false}\n")); got != "firewall connections" {
		t.Errorf("without sysctls: %s", got)
	}
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

func TestUnwantedNeedsTheKernel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := unwanted(ctx, Desired{}); err == nil {
		t.Error("connections were listed after the end")
	}
}
