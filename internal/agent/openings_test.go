package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/config"
)

func wish(from string) control.OpenRequest {
	return control.OpenRequest{From: netip.MustParsePrefix(from), Proto: "tcp", Port: 22, For: 30 * time.Minute, Reason: "restore, ticket 4711", By: "uid 0, sudo by ada"}
}

func TestCheckOpening(t *testing.T) {
	siblings := []netip.Prefix{netip.MustParsePrefix("10.20.1.0/24"), netip.MustParsePrefix("fd00:20:1::/64")}
	with := func(from string, change func(*control.OpenRequest)) control.OpenRequest {
		r := wish(from)
		if change != nil {
			change(&r)
		}
		return r
	}
	for _, tt := range []struct {
		name string
		wish control.OpenRequest
		says []string // none: it is good
	}{
		{"address", with("192.0.2.7/32", nil), nil},
		{"network", with("192.0.2.0/24", nil), nil},
		{"the widest", with("10.0.0.0/8", func(r *control.OpenRequest) { r.From = netip.MustParsePrefix("11.0.0.0/8") }), nil},
		{"the widest of IPv6", with("fc00::/7", func(r *control.OpenRequest) { r.From = netip.MustParsePrefix("2400::/7") }), nil},
		{"a sibling's address", with("10.20.1.66/32", nil), nil},
		{"a sibling's address of IPv6", with("fd00:20:1::66/128", nil), nil},
		{"udp", with("192.0.2.7/32", func(r *control.OpenRequest) { r.Proto = "udp" }), nil},
		{"everybody", with("0.0.0.0/0", nil), []string{"--from: 0.0.0.0/0 is every address there is"}},
		{"everybody of IPv6", with("::/0", nil), []string{"--from: ::/0 is every address there is"}},
		{"half of everybody", with("128.0.0.0/1", nil), []string{"wider than /8"}},
		{"too wide for IPv6", with("2000::/3", nil), []string{"wider than /7"}},
		{"host bits", with("192.0.2.7/24", nil), []string{"write 192.0.2.7 or 192.0.2.0/24"}},
		{"v4-mapped", with("::ffff:192.0.2.7/128", nil), []string{"write 192.0.2.7"}},
		{"loopback", with("127.0.0.1/32", nil), []string{"nobody else sends from"}},
		{"multicast", with("224.0.0.0/8", nil), []string{"nobody else sends from"}},
		{"none", control.OpenRequest{Proto: "tcp", Port: 22, For: time.Hour, Reason: "x"}, []string{"--from: give an address"}},
		{"siblings", with("10.20.1.0/24", nil), []string{"shared with siblings (10.20.1.0/24)", "address by address"}},
		{"part of the siblings", with("10.20.1.64/31", nil), []string{"address by address"}},
		{"more than the siblings", with("fd00::/16", nil), []string{"shared with siblings (fd00:20:1::/64)"}},
		{"all else is wrong", control.OpenRequest{From: netip.MustParsePrefix("192.0.2.7/32"), Proto: "icmp", Reason: " "},
			[]string{"--proto: \"icmp\"", "--for: 0s is out of range; give a time from 1m0s to 24h0m0s", "--reason: say why"}},
		{"no port", with("192.0.2.7/32", func(r *control.OpenRequest) { r.Port = 0 }), []string{"--port: give a port"}},
		{"too long", with("192.0.2.7/32", func(r *control.OpenRequest) { r.For = 25 * time.Hour }), []string{"--for"}},
		{"a long story", with("192.0.2.7/32", func(r *control.OpenRequest) { r.Reason = strings.Repeat("x", 201) }), []string{"at most 200 characters"}},
		{"a reason for a terminal", with("192.0.2.7/32", func(r *control.OpenRequest) { r.Reason = "x\x1b[2J" }), []string{"printable"}},
		{"two lines", with("192.0.2.7/32", func(r *control.OpenRequest) { r.Reason = "x\ny" }), []string{"printable"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := checkOpening(tt.wish, siblings)
			if len(tt.says) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			contains(t, err, tt.says...)
		})
	}
}

func testOpenings(t *testing.T, dir string) *openings {
	t.Helper()
	return newOpenings(t.Context(), dir, slog.New(slog.DiscardHandler))
}

func mustAdd(t *testing.T, o *openings, from string) control.Opening {
	t.Helper()
	x, err := o.add(t.Context(), wish(from), config.Peers{})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// ids of those in force.
func ids(t *testing.T, o *openings) []string {
	t.Helper()
	var list []string
	for _, x := range o.open() {
		list = append(list, x.ID)
	}
	if rules, _, _ := o.follow(t.Context()); len(rules) != len(list) {
		t.Errorf("%d openings for people, %d in the rules", len(list), len(rules))
	}
	return list
}

func TestOpeningSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	made := mustAdd(t, testOpenings(t, dir), "192.0.2.7/32")
	list := testOpenings(t, dir).open()
	if len(list) != 1 {
		t.Fatalf("%+v", list)
	}
	got := list[0]
	if off := got.Until.Sub(made.Until).Abs(); off > time.Millisecond || !got.Opened.Equal(made.Opened) {
		t.Errorf("opened %v until %v, was %v until %v", got.Opened, got.Until, made.Opened, made.Until)
	}
	if got.ID != made.ID || got.From != made.From || got.Proto != "tcp" || got.Port != 22 || got.Reason != made.Reason || got.By != made.By {
		t.Errorf("%+v", got)
	}
}

func TestOpeningEndsWithItsTime(t *testing.T) {
	o := testOpenings(t, t.TempDir())
	x := mustAdd(t, o, "192.0.2.7/32")
	if left := o.next(); left < 29*time.Minute || left > 30*time.Minute {
		t.Errorf("the next end is in %v", left)
	}
	_, before, err := o.follow(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o.list[0].Until = time.Now()
	open, after, err := o.follow(t.Context())
	if len(open) != 0 || after == before || err != nil {
		t.Errorf("in force %+v, changes %d, were %d, %v", open, after, before, err)
	}
	if ended := o.all()[0]; ended.ID != x.ID || ended.EndedBy != endedByTime || ended.Ended.IsZero() || o.next() != 0 {
		t.Errorf("%+v", ended)
	}
	if _, err := o.end(t.Context(), x.ID, "uid 0"); !errors.Is(err, control.ErrRefused) {
		t.Errorf("closed once more: %v", err)
	}
}

func TestOpeningIsClosedEarly(t *testing.T) {
	dir := t.TempDir()
	o := testOpenings(t, dir)
	x, y := mustAdd(t, o, "192.0.2.7/32"), mustAdd(t, o, "2001:db8::/64")
	closed, err := o.end(t.Context(), x.ID, "uid 1000")
	if err != nil || closed.EndedBy != "uid 1000" || closed.Ended.IsZero() {
		t.Errorf("%+v, %v", closed, err)
	}
	for name, o := range map[string]*openings{"now": o, "after a restart": testOpenings(t, dir)} {
		if got := ids(t, o); !slices.Equal(got, []string{y.ID}) {
			t.Errorf("%s: %q are open, want %q", name, got, y.ID)
		}
		if len(o.all()) != 2 {
			t.Errorf("%s: what ended is not kept: %+v", name, o.all())
		}
	}
	if _, err := o.end(t.Context(), "ffffff", "uid 0"); !errors.Is(err, control.ErrNoSuch) {
		t.Errorf("%v", err)
	}
}

func TestOpeningsAreFew(t *testing.T) {
	o := testOpenings(t, t.TempDir())
	first := mustAdd(t, o, "192.0.2.0/32")
	_, err := o.add(t.Context(), wish("192.0.2.0/32"), config.Peers{})
	contains(t, err, "refused: it is open already", "`pghardend close --id "+first.ID+"`")
	for i := 1; i < maxOpenings; i++ {
		mustAdd(t, o, fmt.Sprintf("192.0.2.%d/32", i))
	}
	_, err = o.add(t.Context(), wish("192.0.2.99/32"), config.Peers{})
	contains(t, err, "refused: 16 openings are in force")
	if _, err := o.end(t.Context(), first.ID, "uid 0"); err != nil {
		t.Error(err)
	}
	mustAdd(t, o, "192.0.2.99/32")
	for range maxHistory {
		last := o.open()[0]
		if _, err := o.end(t.Context(), last.ID, "uid 0"); err != nil {
			t.Fatal(err)
		}
		mustAdd(t, o, "192.0.2.100/32")
		if _, err := o.end(t.Context(), o.open()[len(o.open())-1].ID, "uid 0"); err != nil {
			t.Fatal(err)
		}
		mustAdd(t, o, last.From.String())
	}
	if got := len(o.all()); got != maxHistory+maxOpenings {
		t.Errorf("%d openings are kept", got)
	}
}

// The history is full when the oldest openings end, two of them at once.
func TestOpeningsEndWhileTheHistoryIsFull(t *testing.T) {
	o := testOpenings(t, t.TempDir())
	oldest, a, b := mustAdd(t, o, "192.0.2.1/32"), mustAdd(t, o, "192.0.2.2/32"), mustAdd(t, o, "192.0.2.3/32")
	for range maxHistory {
		if _, err := o.end(t.Context(), mustAdd(t, o, "192.0.2.100/32").ID, "uid 0"); err != nil {
			t.Fatal(err)
		}
	}
	stays := mustAdd(t, o, "192.0.2.4/32")
	o.list[1].Until, o.list[2].Until = time.Now(), time.Now()
	if open, _, err := o.follow(t.Context()); len(open) != 2 || err != nil {
		t.Errorf("in force: %+v, %v; %s and %s have ended", open, err, a.ID, b.ID)
	}
	if closed, err := o.end(t.Context(), oldest.ID, "uid 0"); err != nil || closed.ID != oldest.ID || closed.EndedBy != "uid 0" {
		t.Errorf("%+v, %v", closed, err)
	}
	if got := ids(t, o); !slices.Equal(got, []string{stays.ID}) {
		t.Errorf("%q are open, want %q", got, stays.ID)
	}
}

// stored is a file with one opening.
func stored(opened, until time.Time) []byte {
	data, err := json.Marshal(openingsDoc{Version: 1, Openings: []control.Opening{{
		ID: "0a1b2c", From: netip.MustParsePrefix("192.0.2.7/32"), Proto: "tcp", Port: 22, Opened: opened, Until: until, Reason: "x", By: "uid 0",
	}}})
	if err != nil {
		panic(err)
	}
	return data
}

// Another day, another daemon: what was to end is not opened again, whatever the
// clock did meanwhile.
func TestF21_OpeningsAndTheClock(t *testing.T) {
	now := time.Now()
	for name, tt := range map[string]struct {
		opened, until time.Time
		least, most   time.Duration
	}{
		"half of its time":    {now.Add(-time.Hour), now.Add(time.Hour), time.Hour - time.Minute, time.Hour},
		"expired":             {now.Add(-time.Hour), now.Add(-time.Second), 0, 0},
		"clock a year ahead":  {now.AddDate(-1, 0, 0), now.AddDate(-1, 0, 0).Add(time.Hour), 0, 0},
		"clock a year behind": {now.AddDate(1, 0, 0), now.AddDate(1, 0, 0).Add(time.Hour), 0, 0},
		"clock a bit behind":  {now.Add(30 * time.Second), now.Add(30*time.Second + time.Hour), time.Hour - time.Minute, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFiles(t)
			f.must(replaceFile(t.Context(), filepath.Join(f.dir, openingsFile), stored(tt.opened, tt.until)))
			o := testOpenings(t, f.dir)
			if left := o.next(); left < tt.least || left > tt.most {
				t.Errorf("it is open for %v, want %v to %v", left, tt.least, tt.most)
			}
			if again := testOpenings(t, f.dir); len(again.all()) != 1 || again.readErr != nil || again.next() > tt.most {
				t.Errorf("at the next start: %+v, %v", again.all(), again.readErr)
			}
		})
	}
}

func TestSpoiledOpeningsAreClosed(t *testing.T) {
	now := time.Now()
	good := string(stored(now, now.Add(time.Hour)))
	for name, text := range map[string]string{
		"not JSON":        "{",
		"empty":           "",
		"another version": strings.Replace(good, `"version":1`, `"version":2`, 1),
		"for too long":    string(stored(now, now.Add(25*time.Hour))),
		"for everybody":   strings.Replace(good, "192.0.2.7/32", "0.0.0.0/0", 1),
		"no id":           strings.Replace(good, "0a1b2c", "", 1),
		"no reason":       strings.Replace(good, `"reason":"x"`, `"reason":""`, 1),
		"wrong type":      strings.Replace(good, `"port":22`, `"port":"ssh"`, 1),
		"one twice":       strings.Replace(good, `"openings":[`, `"openings":[`+good[strings.Index(good, "[")+1:len(good)-2]+",", 1),
	} {
		t.Run(name, func(t *testing.T) {
			f := newFiles(t)
			file := filepath.Join(f.dir, openingsFile)
			f.write(file, text)
			o := testOpenings(t, f.dir)
			_, _, err := o.follow(t.Context())
			contains(t, err, "no opening is in force", file, "remove the file, or correct it and restart the daemon")
			if len(ids(t, o)) != 0 {
				t.Error("something is open")
			}
			// It keeps nobody from opening; what was there can be looked at.
			x := mustAdd(t, o, "192.0.2.9/32")
			if _, _, err := o.follow(t.Context()); err != nil || f.read(file+".unreadable") != text {
				t.Errorf("%v", err)
			}
			if got := ids(t, testOpenings(t, f.dir)); !slices.Equal(got, []string{x.ID}) {
				t.Errorf("after a restart %q", got)
			}
		})
	}
	t.Run("removed", func(t *testing.T) {
		f := newFiles(t)
		f.write(filepath.Join(f.dir, openingsFile), "{")
		o := testOpenings(t, f.dir)
		f.remove(o.file)
		if _, _, err := o.follow(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("for others to write", func(t *testing.T) {
		f := newFiles(t)
		f.write(filepath.Join(f.dir, openingsFile), good)
		f.chmod(filepath.Join(f.dir, openingsFile), 0o666)
		_, _, err := testOpenings(t, f.dir).follow(t.Context())
		contains(t, err, "no opening is in force", "mode 0666")
	})
}

// A full disk may be why somebody has to get in.
func TestF22_OpeningThatCannotBeRecorded(t *testing.T) {
	f := newFiles(t)
	s := f.restarted(t)
	f.remove(f.state)
	f.write(f.state, "in the way")
	x := mustAdd(t, s.openings, "192.0.2.7/32")
	_, err := load(t, s, false)
	contains(t, err, "cannot be recorded", "full or read-only", f.state)
	if len(s.current.Extra.Openings) != 1 {
		t.Errorf("in the rules: %+v", s.current.Extra.Openings)
	}
	_, err = s.openings.end(t.Context(), x.ID, "uid 0")
	contains(t, err, x.ID+" is closed, but a daemon that starts before", "would open it again")
	if len(ids(t, s.openings)) != 0 {
		t.Error("it is open")
	}
	f.remove(f.state)
	if _, err := load(t, s, false); err != nil {
		t.Errorf("it is not tried again: %v", err)
	}
	if again := testOpenings(t, f.state); len(again.all()) != 1 || len(again.open()) != 0 {
		t.Errorf("%+v", again.all())
	}
}

// Each change of the openings is a new desired state, so that what differs then
// is no drift, and the pass that closes one comes when it has to.
func TestOpeningsAreDesiredState(t *testing.T) {
	f := newFiles(t)
	s := f.restarted(t)
	x := mustAdd(t, s.openings, "192.0.2.7/32")
	d, err := load(t, s, false)
	if err != nil || d.Generation != 2 || d.Recheck <= 29*time.Minute || len(s.current.Firewall.Openings) != 1 {
		t.Fatalf("%+v, %v", d, err)
	}
	if got := s.current.Firewall.Openings[0]; got.From != x.From || got.Proto != "tcp" || got.Port != 22 || !got.Until.Equal(x.Until) {
		t.Errorf("%+v", got)
	}
	if d, err = load(t, s, false); err != nil || d.Generation != 2 {
		t.Errorf("nothing changed, but %+v, %v", d, err)
	}
	if again := f.restarted(t); len(again.current.Firewall.Openings) != 1 {
		t.Error("after a restart it is not in the rules")
	}
	// A new peer list keeps it.
	f.write(f.peers, changedPeers(t))
	if err := settled(t, s); err != nil || s.generation != 3 || len(s.current.Firewall.Openings) != 1 {
		t.Errorf("generation %d, %v", s.generation, err)
	}
	if _, err := s.openings.end(t.Context(), x.ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	if d, err = load(t, s, false); err != nil || d.Generation != 4 || d.Recheck != 0 || len(s.current.Firewall.Openings) != 0 {
		t.Errorf("%+v, %v", d, err)
	}
}

// Going back to the state before a change leaves the openings of now.
func TestGoingBackKeepsOpenings(t *testing.T) {
	f := newFiles(t)
	s := f.waitingFor(t)
	mustAdd(t, s.openings, "192.0.2.7/32")
	s.timeIsUp()
	_, _ = load(t, s, false)
	f.wants(t, s, "10.20.1.20", "10.20.1.20")
	if len(s.current.Firewall.Openings) != 1 {
		t.Error("it is not open any more")
	}
}

func TestOpenAndCloseThroughTheAgent(t *testing.T) {
	f := newFiles(t)
	f.write(f.peers, goodPeers+"  siblings: [10.20.1.0/24]\n")
	rules := &fakeRules{}
	a := testAgent(t, f.started(), rules)
	run(t, a)
	<-a.loop.Enforced()
	x, err := a.Open(t.Context(), wish("192.0.2.7/32"))
	if err != nil || a.Status(t.Context()).State != control.StateOK {
		t.Fatalf("%+v, %v", x, err)
	}
	if st := a.Status(t.Context()); len(st.Openings) != 1 || st.Openings[0].Reason != x.Reason || st.Generation != 2 {
		t.Errorf("%+v", st)
	}
	_, err = a.Open(t.Context(), wish("10.20.1.0/24"))
	contains(t, err, "refused: ", "address by address")
	if _, err = a.Open(t.Context(), wish("10.20.1.66/32")); err != nil {
		t.Error(err)
	}
	if _, err = a.Close(t.Context(), "ffffff", "uid 0"); !errors.Is(err, control.ErrNoSuch) {
		t.Error(err)
	}
	rules.set("different", errors.New("xtables lock held"))
	x, err = a.Close(t.Context(), x.ID, "uid 0")
	contains(t, err, "has ended, but may still be in the rules", "xtables lock held")
	if x.Ended.IsZero() || len(a.Status(t.Context()).Openings) != 1 || len(a.Openings(t.Context())) != 2 {
		t.Errorf("%+v", x)
	}
	x, err = a.Open(t.Context(), wish("192.0.2.8/32"))
	contains(t, err, "the opening "+x.ID+" is recorded, but not in the rules yet", "xtables lock held")
}

// fakeSysctls is another resource that may fail.
type fakeSysctls struct{ fakeRules }

func (*fakeSysctls) Name() string { return "sysctl" }

// That an opening is in the rules does not depend on what else is amiss.
func TestOpenDoesNotBlameTheRulesForASysctl(t *testing.T) {
	s := newFiles(t).started()
	rules, sysctls := &fakeRules{}, &fakeSysctls{}
	a := testAgent(t, s, rules)
	s.resources = func(Desired) []reconcile.Resource { return []reconcile.Resource{sysctls, rules} }
	run(t, a)
	<-a.loop.Enforced()
	sysctls.set("different", errors.New("read-only file system"))
	x, err := a.Open(t.Context(), wish("192.0.2.7/32"))
	if err != nil {
		t.Error(err)
	}
	if _, err := a.Close(t.Context(), x.ID, "uid 0"); err != nil {
		t.Error(err)
	}
	if st := a.Status(t.Context()); st.State != control.StateDegraded {
		t.Errorf("the sysctl is forgotten: %+v", st)
	}
}

func TestOpenNowLeavesOutWhatHasEnded(t *testing.T) {
	now := time.Now()
	list := []control.Opening{
		{ID: "a", Until: now.Add(time.Hour)},
		{ID: "b", Until: now},
		{ID: "c", Until: now.Add(time.Hour), Ended: now},
	}
	got := openNow(list, now)
	if len(got) != 1 || !got[0].Until.Equal(list[0].Until) {
		t.Errorf("%+v", got)
	}
}

func TestSooner(t *testing.T) {
	for _, tt := range [][3]time.Duration{{0, 0, 0}, {0, 1, 1}, {2, 1, 1}, {1, 2, 1}} {
		if got := sooner(tt[0], tt[1]); got != tt[2] {
			t.Errorf("sooner(%d, %d) = %d, want %d", tt[0], tt[1], got, tt[2])
		}
	}
}

func FuzzParseOpenings(f *testing.F) {
	now := time.Now()
	f.Add(stored(now, now.Add(time.Hour)))
	f.Add(stored(now, now.AddDate(1, 0, 0)))
	f.Add([]byte(`{"version": 1, "openings": []}`))
	f.Add([]byte(`{"version": 1, "openings": [{"id": "x", "from": "::/0"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseOpenings(data)
		if err != nil {
			return
		}
		for _, x := range list {
			a := anchored(x, now)
			if left := a.Until.Sub(now); left > maxOpen || x.From.Bits() == 0 {
				t.Errorf("%+v is open for %v", x, left)
			}
		}
	})
}
