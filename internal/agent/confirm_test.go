package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
)

const changed = "10.20.1.29" // instead of pool-0's 10.20.1.20

func changedPeers(t *testing.T) string { return replace(t, goodPeers, "10.20.1.20", changed) }

// asks makes the passes that somebody's request makes.
func asks(t *testing.T, s *fileSource, r request) error {
	t.Helper()
	s.conf.orders.give(&r)
	defer s.conf.orders.give(nil)
	if r.confirm != "" {
		_, err := load(t, s, false)
		return errors.Join(r.err, err)
	}
	return settled(t, s)
}

// state says what is in force and what is kept for the next start.
func (f *files) kept(s *fileSource) (inForce, kept string) {
	f.t.Helper()
	return s.current.Peers.Nodes[2].Addresses[0].String(), address(f.read(filepath.Join(f.state, lastGoodDir, acceptedPeers)))
}

func address(peers string) string {
	if strings.Contains(peers, changed) {
		return changed
	}
	return "10.20.1.20"
}

func (f *files) wants(t *testing.T, s *fileSource, inForce, kept string) {
	t.Helper()
	if gotForce, gotKept := f.kept(s); gotForce != inForce || gotKept != kept {
		t.Errorf("in force %s, want %s; kept %s, want %s", gotForce, inForce, gotKept, kept)
	}
	if got := address(f.read(filepath.Join(f.run, acceptedPeers))); got != inForce {
		t.Errorf("the launch stage has %s, want what is in force, %s", got, inForce)
	}
}

func (f *files) recorded() string {
	f.t.Helper()
	rec, err := readPending(f.t.Context(), f.state)
	switch {
	case err != nil:
		return err.Error()
	case rec == nil:
		return "none"
	}
	return rec.State
}

// waitingFor is a source with a change that waits for its confirmation.
func (f *files) waitingFor(t *testing.T) *fileSource {
	t.Helper()
	s := f.restarted(t)
	f.write(f.peers, changedPeers(t))
	if err := asks(t, s, request{apply: true, within: time.Hour}); err != nil {
		t.Fatal(err)
	}
	f.wants(t, s, changed, "10.20.1.20")
	if s.conf.waits == nil || s.conf.shown.Load() == nil || f.recorded() != pendingWaits {
		t.Fatalf("nothing waits; recorded: %s", f.recorded())
	}
	return s
}

func (s *fileSource) timeIsUp() { s.conf.waits.until = time.Now() }

func TestUnconfirmedChangeGoesBack(t *testing.T) {
	f := newFiles(t)
	s := f.waitingFor(t)
	d, err := load(t, s, false)
	if err != nil || d.Recheck < 59*time.Minute {
		t.Errorf("while it waits: %+v, %v", d, err)
	}
	generation := s.generation
	s.timeIsUp()
	d, err = load(t, s, false)
	contains(t, err, stays, "not confirmed in time", "`pghardend apply --force` keeps it")
	f.wants(t, s, "10.20.1.20", "10.20.1.20")
	if d.Generation != generation+1 || f.recorded() != pendingRejected || s.conf.shown.Load() != nil {
		t.Errorf("generation %d, recorded %s", d.Generation, f.recorded())
	}
	// Nor is it taken again, by this daemon or the next one.
	contains(t, settled(t, s), "not confirmed in time")
	s = f.restarted(t)
	contains(t, settled(t, s), "not confirmed in time")
	f.wants(t, s, "10.20.1.20", "10.20.1.20")
}

func TestWhatWasPutBackIsTaken(t *testing.T) {
	for name, again := range map[string]func(t *testing.T, f *files, s *fileSource) error{
		"when somebody insists": func(t *testing.T, _ *files, s *fileSource) error {
			t.Helper()
			contains(t, asks(t, s, request{apply: true}), stays, "not confirmed in time") // as a boot unit asks
			_, err := load(t, s, true)
			return err
		},
		"after the files held something else": func(t *testing.T, f *files, s *fileSource) error {
			t.Helper()
			f.write(f.peers, goodPeers)
			if err := settled(t, s); err != nil {
				t.Error(err)
			}
			f.write(f.peers, changedPeers(t))
			return settled(t, s)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFiles(t)
			f.t = t
			s := f.waitingFor(t)
			s.timeIsUp()
			_, _ = load(t, s, false)
			if err := again(t, f, s); err != nil {
				t.Fatal(err)
			}
			f.wants(t, s, changed, changed)
			if f.recorded() != "none" {
				t.Errorf("recorded: %s", f.recorded())
			}
		})
	}
}

// Tried again, it has to be confirmed again.
func TestWhatWasPutBackIsTriedAgain(t *testing.T) {
	f := newFiles(t)
	s := f.waitingFor(t)
	s.timeIsUp()
	_, _ = load(t, s, false)
	if err := asks(t, s, request{apply: true, within: time.Hour}); err != nil {
		t.Fatal(err)
	}
	f.wants(t, s, changed, "10.20.1.20")
	if s.conf.waits == nil || f.recorded() != pendingWaits {
		t.Errorf("nothing waits; recorded: %s", f.recorded())
	}
}

// A command without a daemon, such as a boot unit's, knows what is not confirmed.
func TestCommandRefusesWhatIsNotConfirmed(t *testing.T) {
	f := newFiles(t)
	s := f.waitingFor(t)
	dir := s.current.Config.StateDir
	check := func(want string) {
		t.Helper()
		in, _, err := readInput(t.Context(), s.configFile)
		if err != nil {
			t.Fatal(err)
		}
		switch err := checkConfirmed(t.Context(), dir, in); {
		case want == "" && err != nil:
			t.Errorf("refused: %v", err)
		case want != "":
			contains(t, err, want)
		}
	}
	check("not confirmed") // it waits still, but nobody is left who would put it back
	s.timeIsUp()
	_, _ = load(t, s, false)
	check("not confirmed")
	f.write(f.peers, goodPeers)
	check("")
}

func TestConfirmedChangeStays(t *testing.T) {
	f := newFiles(t)
	s := f.waitingFor(t)
	if err := asks(t, s, request{confirm: "uid 0"}); err != nil {
		t.Fatal(err)
	}
	f.wants(t, s, changed, changed)
	if err := asks(t, s, request{confirm: "uid 0"}); !errors.Is(err, control.ErrRefused) || f.recorded() != "none" {
		t.Errorf("confirmed twice: %v; recorded: %s", err, f.recorded())
	}
	s = f.restarted(t)
	f.wants(t, s, changed, changed)
}

// A confirmation that is in before the pass that would put the change back
// counts, even if the time is up by then.
func TestConfirmationComesFirst(t *testing.T) {
	f := newFiles(t)
	s := f.waitingFor(t)
	s.timeIsUp()
	if err := asks(t, s, request{confirm: "uid 0"}); err != nil {
		t.Error(err)
	}
	f.wants(t, s, changed, changed)
}

func TestNothingToConfirm(t *testing.T) {
	f := newFiles(t)
	s := f.restarted(t)
	if err := asks(t, s, request{apply: true, within: time.Hour}); err != nil || s.conf.waits != nil {
		t.Errorf("%+v, %v", s.conf.waits, err)
	}
	// What was asked for without a condition is meant to stay.
	f.write(f.peers, changedPeers(t))
	for _, r := range []request{{apply: true}, {apply: true, within: time.Hour}} {
		if err := asks(t, s, r); err != nil || s.conf.waits != nil {
			t.Errorf("%+v, %v", s.conf.waits, err)
		}
	}
	f.wants(t, s, changed, changed)
}

// The daemon takes a file up before its author can ask for a confirmation.
func TestRecentChangeCanBePutUnderConfirmation(t *testing.T) {
	f := newFiles(t)
	s := f.restarted(t)
	f.write(f.peers, replace(t, goodPeers, "10.20.1.21", "10.20.1.28"))
	if err := settled(t, s); err != nil {
		t.Fatal(err)
	}
	f.write(f.peers, changedPeers(t))
	if err := settled(t, s); err != nil {
		t.Fatal(err)
	}
	f.wants(t, s, changed, changed)
	generation := s.generation
	if err := asks(t, s, request{apply: true, within: time.Hour}); err != nil || s.conf.waits == nil || s.generation != generation {
		t.Fatalf("generation %d, %+v, %v", s.generation, s.conf.waits, err)
	}
	f.wants(t, s, changed, "10.20.1.20")
	s.timeIsUp()
	_, _ = load(t, s, false)
	f.wants(t, s, "10.20.1.20", "10.20.1.20")
	if got := string(s.currentIn.peers); got != goodPeers {
		t.Errorf("not the state before both changes but\n%s", got)
	}
}

func TestOlderChangeIsNotPutUnderConfirmation(t *testing.T) {
	f := newFiles(t)
	s := f.restarted(t)
	f.write(f.peers, changedPeers(t))
	if err := settled(t, s); err != nil {
		t.Fatal(err)
	}
	s.conf.before.at = time.Now().Add(-recent)
	if err := asks(t, s, request{apply: true, within: time.Hour}); err != nil || s.conf.waits != nil {
		t.Errorf("%+v, %v", s.conf.waits, err)
	}
}

func TestChangeWhileOneWaits(t *testing.T) {
	f := newFiles(t)
	s := f.waitingFor(t)
	until := s.conf.waits.until
	further := replace(t, changedPeers(t), "10.20.1.21", "10.20.1.28")
	f.write(f.peers, further)
	if err := settled(t, s); err != nil {
		t.Fatal(err)
	}
	f.wants(t, s, changed, "10.20.1.20")
	if s.conf.waits == nil || !s.conf.waits.until.Equal(until) || string(s.currentIn.peers) != further {
		t.Fatalf("a further change is not part of what waits: %+v", s.conf.waits)
	}
	if err := asks(t, s, request{apply: true, within: 2 * time.Hour}); err != nil || !s.conf.waits.until.After(until) {
		t.Errorf("the time is not extended: %+v, %v", s.conf.waits, err)
	}
	s.timeIsUp()
	_, _ = load(t, s, false)
	f.wants(t, s, "10.20.1.20", "10.20.1.20")
}

// Who puts the files back has decided.
func TestChangeThatItsAuthorTakesBack(t *testing.T) {
	f := newFiles(t)
	s := f.waitingFor(t)
	f.write(f.peers, goodPeers)
	if err := settled(t, s); err != nil || s.conf.waits != nil || f.recorded() != "none" {
		t.Errorf("%+v, %v; recorded: %s", s.conf.waits, err, f.recorded())
	}
	f.wants(t, s, "10.20.1.20", "10.20.1.20")
}

func TestWaitingSurvivesARestart(t *testing.T) {
	inTime := func(f *files) { f.rewritePending(time.Now().Add(-time.Minute), time.Now().Add(time.Minute)) }
	tooLate := func(f *files) { f.rewritePending(time.Now().Add(-time.Hour), time.Now().Add(-time.Second)) }
	for name, tt := range map[string]struct {
		meanwhile func(f *files)
		inForce   string
		kept      string
		recorded  string
	}{
		"in time":           {inTime, changed, "10.20.1.20", pendingWaits},
		"too late":          {tooLate, "10.20.1.20", "10.20.1.20", pendingRejected},
		"clock set back":    {func(f *files) { f.rewritePending(time.Now().Add(24*time.Hour), time.Now().Add(25*time.Hour)) }, changed, "10.20.1.20", pendingWaits},
		"clock set forward": {func(f *files) { f.rewritePending(time.Now().AddDate(-1, 0, 0), time.Now().AddDate(-1, 0, 0)) }, "10.20.1.20", "10.20.1.20", pendingRejected},
		"unreadable record": {func(f *files) { f.write(filepath.Join(f.state, pendingFile), "{") }, "10.20.1.20", "10.20.1.20", pendingRejected},
		"files put back":    {func(f *files) { f.write(f.peers, goodPeers) }, "10.20.1.20", "10.20.1.20", "none"},
		"files spoiled":     {func(f *files) { f.write(f.peers, "") }, "10.20.1.20", "10.20.1.20", pendingRejected},
		"too late, but changed": {func(f *files) {
			tooLate(f)
			f.write(f.peers, replace(f.t, changedPeers(f.t), "10.20.1.21", "10.20.1.28"))
		}, changed, changed, "none"},
		"confirmed, but the record stayed": {func(f *files) {
			f.write(filepath.Join(f.state, lastGoodDir, acceptedPeers), f.read(f.peers))
		}, changed, changed, "none"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFiles(t)
			f.t = t
			f.waitingFor(t)
			tt.meanwhile(f)
			s := f.started()
			_, _ = load(t, s, false)
			f.wants(t, s, tt.inForce, tt.kept)
			if got := f.recorded(); got != tt.recorded {
				t.Errorf("recorded: %s, want %s", got, tt.recorded)
			}
			if (s.conf.waits != nil) != (tt.recorded == pendingWaits) {
				t.Errorf("waits: %+v", s.conf.waits)
			}
			if w := s.conf.waits; w != nil && time.Until(w.until) > time.Hour {
				t.Errorf("it waits for %v", time.Until(w.until))
			}
		})
	}
}

func (f *files) rewritePending(since, until time.Time) {
	f.t.Helper()
	rec, err := readPending(f.t.Context(), f.state)
	f.must(err)
	rec.Since, rec.Until = since, until
	f.must(writePending(f.t.Context(), f.state, *rec))
}

// A forced change that waits is as suspicious after a restart as it was.
func TestForcedChangeWaitsOnAfterARestart(t *testing.T) {
	f := newFiles(t)
	s := f.restarted(t)
	f.write(f.peers, upTo(goodPeers, "  - {name: pg-1")+from(goodPeers, "networks:"))
	r := request{apply: true, within: time.Hour}
	s.conf.orders.give(&r)
	if _, err := load(t, s, true); err != nil || s.conf.waits == nil {
		t.Fatalf("%+v, %v", s.conf.waits, err)
	}
	s = f.started()
	if _, err := load(t, s, false); err != nil || s.conf.waits == nil || len(s.current.Peers.Nodes) != 1 {
		t.Errorf("%d nodes, %+v, %v", len(s.current.Peers.Nodes), s.conf.waits, err)
	}
}

// What a restart would forget cannot be promised.
func TestF22_NoConfirmationWithoutARecord(t *testing.T) {
	f := newFiles(t)
	s := f.restarted(t)
	f.remove(f.state)
	f.write(f.state, "in the way")
	f.write(f.peers, changedPeers(t))
	contains(t, asks(t, s, request{apply: true, within: time.Hour}), "has to be confirmed was not taken", f.state)
	if got := s.current.Peers.Nodes[2].Addresses[0].String(); got != "10.20.1.20" || s.conf.waits != nil {
		t.Errorf("in force: %s, %+v", got, s.conf.waits)
	}
}

// The change goes back though nothing can be written.
func TestF22_GoingBackWithAFullDisk(t *testing.T) {
	f := newFiles(t)
	s := f.waitingFor(t)
	f.must(os.Rename(f.state, f.state+".away"))
	f.write(f.state, "in the way")
	s.timeIsUp()
	_, err := load(t, s, false)
	contains(t, err, "not confirmed in time", "cannot record which change is confirmed")
	if got := s.current.Peers.Nodes[2].Addresses[0].String(); got != "10.20.1.20" {
		t.Errorf("in force: %s", got)
	}
	f.remove(f.state)
	f.must(os.Rename(f.state+".away", f.state))
	_, _ = load(t, s, false)
	if f.recorded() != pendingRejected {
		t.Errorf("recorded: %s", f.recorded())
	}
}

func TestConfirmThroughTheAgent(t *testing.T) {
	f := newFiles(t)
	rules := &fakeRules{}
	a := testAgent(t, f.started(), rules)
	run(t, a)
	<-a.loop.Enforced()
	f.write(f.peers, changedPeers(t))
	for _, d := range []time.Duration{time.Second, 2 * time.Hour, -time.Minute} {
		if _, err := a.Apply(t.Context(), control.ApplyRequest{ConfirmWithin: d}); !errors.Is(err, control.ErrRefused) {
			t.Errorf("%v: %v", d, err)
		}
	}
	st, err := a.Apply(t.Context(), control.ApplyRequest{ConfirmWithin: time.Minute})
	if err != nil || st.Pending == nil || time.Until(st.Pending.Until) > time.Minute || st.State != control.StateOK {
		t.Fatalf("%+v, %v", st, err)
	}
	rules.set("different", errors.New("xtables lock held"))
	_, err = a.Apply(t.Context(), control.ApplyRequest{ConfirmWithin: time.Minute})
	contains(t, err, "xtables lock held", "the change is in force until ", "`pghardend confirm`")
	if st, err = a.Confirm(t.Context(), "uid 0"); err != nil || st.Pending != nil {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err = a.Confirm(t.Context(), "uid 0"); !errors.Is(err, control.ErrRefused) {
		t.Errorf("%v", err)
	}
}

func FuzzParsePending(f *testing.F) {
	f.Add([]byte(`{"version": 1, "state": "waiting", "input": "` + strings.Repeat("a", 64) + `", "since": "2026-01-02T03:04:05Z", "until": "2026-01-02T03:05:05Z"}`))
	f.Add([]byte(`{"version": 1, "state": "rejected", "input": ""}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := parsePending(data)
		if err == nil && rec.left(time.Now()) > maxConfirm {
			t.Errorf("%s: it leaves %v", data, rec.left(time.Now()))
		}
	})
}
