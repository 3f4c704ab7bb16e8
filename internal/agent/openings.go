package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// openingsFile in state_dir holds the openings, those in force and the last
// that ended.
const openingsFile = "openings.json"

const (
	maxOpenings = 16
	maxHistory  = 64
	// clockSlack is by how much the clock may be set back before an opening is
	// not believed to be in its time any more.
	clockSlack = time.Minute
)

const endedByTime = "its time was up"

// openings are the time-boxed holes in the rules. The kernel closes them by
// itself; what is kept here is what should be, for the rules, for status and for
// the next daemon. All methods may be called from any goroutine.
type openings struct {
	file string
	log  *slog.Logger

	mu      sync.Mutex
	list    []control.Opening // oldest first
	changes uint64
	readErr error // why nothing of the file counts
	saveErr error
}

// newOpenings reads what an earlier daemon left. A file that cannot be read
// leaves nothing open.
func newOpenings(ctx context.Context, stateDir string, log *slog.Logger) *openings {
	o := &openings{file: filepath.Join(stateDir, openingsFile), log: log}
	list, err := loadOpenings(ctx, stateDir)
	if err != nil {
		o.readErr = fmt.Errorf("no opening is in force, because they cannot be read; remove the file, or correct it and restart the daemon (services go on): %w", err)
		return o
	}
	o.list, o.changes = list, uint64(len(openNow(list, time.Now()))) // the rules have none of them yet
	if o.expire(time.Now()) {
		o.saveErr = o.save(ctx)
	}
	return o
}

// loadOpenings reads the openings that state_dir knows, those that ended
// included. None is no error. What is still open ends by this process's
// monotonic clock, which nobody can set.
func loadOpenings(ctx context.Context, stateDir string) ([]control.Opening, error) {
	file := filepath.Join(stateDir, openingsFile)
	data, err := config.ReadFile(ctx, file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := parseOpenings(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	now := time.Now()
	for i, o := range list {
		if o.Ended.IsZero() {
			list[i] = anchored(o, now)
		}
	}
	return list, nil
}

// openingsDoc is the file.
type openingsDoc struct {
	Version  int               `json:"version"`
	Openings []control.Opening `json:"openings"`
}

// parseOpenings refuses a file with anything in it that `open` would not make:
// half of it may be somebody else's idea.
func parseOpenings(data []byte) ([]control.Opening, error) {
	var doc openingsDoc
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	if doc.Version != 1 {
		return nil, fmt.Errorf("version is %d, not 1", doc.Version)
	}
	open := 0
	seen := map[string]bool{}
	for i, o := range doc.Openings {
		if err := checkStored(o); err != nil {
			return nil, fmt.Errorf("openings[%d]: %w", i, err)
		}
		if seen[o.ID] {
			return nil, fmt.Errorf("openings[%d]: the id %q is here twice", i, o.ID)
		}
		seen[o.ID] = true
		if o.Ended.IsZero() {
			open++
		}
	}
	if open > maxOpenings {
		return nil, fmt.Errorf("%d are open at a time, at most %d can be", open, maxOpenings)
	}
	return doc.Openings, nil
}

func checkStored(o control.Opening) error {
	if o.ID == "" {
		return errors.New("it has no id")
	}
	if d := o.Until.Sub(o.Opened); d > maxOpen {
		return fmt.Errorf("it would be open for %v", d)
	}
	return errors.Join(checkFrom(o.From, nil), checkService(o.Proto, o.Port), checkReason(o.Reason))
}

// anchored ties an opening of the file to the monotonic clock of this process.
// It never lasts longer than it was meant to, and where the clock was set back
// behind its beginning, when it should end cannot be known: it has ended.
func anchored(o control.Opening, now time.Time) control.Opening {
	wall := now.Round(0)
	left := min(o.Until.Sub(wall), o.Until.Sub(o.Opened))
	if wall.Before(o.Opened.Add(-clockSlack)) {
		left = 0
	}
	o.Until = now.Add(left)
	return o
}

// openNow are the openings for the rules.
func openNow(list []control.Opening, now time.Time) []firewall.Opening {
	var open []firewall.Opening
	for _, o := range list {
		if o.Ended.IsZero() && o.Until.After(now) {
			open = append(open, firewall.Opening{From: o.From, Proto: o.Proto, Port: o.Port, Until: o.Until})
		}
	}
	return open
}

// follow ends what is over, and tries again to write what could not be written.
// It returns the openings in force and a number that changes with them.
func (o *openings) follow(ctx context.Context) ([]firewall.Opening, uint64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if o.expire(now) || o.saveErr != nil {
		o.saveErr = o.save(ctx)
	}
	if o.readErr != nil && gone(ctx, o.file) {
		o.readErr = nil // as we asked for
	}
	return openNow(o.list, now), o.changes, errors.Join(o.readErr, o.saveErr)
}

func gone(ctx context.Context, file string) bool {
	_, err := os.Lstat(file)
	return ctx.Err() == nil && errors.Is(err, fs.ErrNotExist)
}

// expire ends the openings whose time is up.
func (o *openings) expire(now time.Time) (changed bool) {
	for i, x := range o.list {
		if x.Ended.IsZero() && !x.Until.After(now) {
			o.endOne(i, now, endedByTime)
			changed = true
		}
	}
	o.forget() // not before, since it moves the others
	return changed
}

func (o *openings) endOne(i int, now time.Time, by string) {
	o.list = slices.Clone(o.list) // readers keep theirs
	o.list[i].Ended, o.list[i].EndedBy = now.Round(0), by
	o.changes++
	x := o.list[i]
	o.log.Info("opening closed", "id", x.ID, "from", x.From.String(), "proto", x.Proto, "port", x.Port, "reason", x.Reason, "by", by)
}

// forget drops the oldest of those that ended, beyond maxHistory. Readers keep
// their list.
func (o *openings) forget() {
	o.list = slices.Clone(o.list)
	ended := 0
	for i := len(o.list) - 1; i >= 0; i-- {
		if o.list[i].Ended.IsZero() {
			continue
		}
		if ended++; ended > maxHistory {
			o.list = slices.Delete(o.list, i, i+1)
		}
	}
}

// next is how long it is until an opening ends; 0 if none is in force.
func (o *openings) next() time.Duration {
	var least time.Duration
	for _, x := range o.all() {
		if left := time.Until(x.Until); x.Ended.IsZero() && (least == 0 || left < least) {
			least = max(left, time.Millisecond)
		}
	}
	return least
}

// moved says whether follow may return another number than seen. It does not wait
// for a disk that somebody else writes to.
func (o *openings) moved(seen uint64, now time.Time) bool {
	if !o.mu.TryLock() {
		return true
	}
	defer o.mu.Unlock()
	return o.changes != seen || slices.ContainsFunc(o.list, func(x control.Opening) bool { return x.Ended.IsZero() && !x.Until.After(now) })
}

// all returns every opening that is known, oldest first.
func (o *openings) all() []control.Opening {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.list)
}

// settled is all for who cannot wait: not ok while one of them is being recorded.
func (o *openings) settled() (list []control.Opening, ok bool) {
	if !o.mu.TryLock() {
		return nil, false
	}
	defer o.mu.Unlock()
	return slices.Clone(o.list), true
}

// open are those in force, for people: their end is said by today's clock, even
// if that was set since.
func (o *openings) open() []control.Opening {
	now := time.Now()
	list := []control.Opening{}
	for _, x := range o.all() {
		if x.Ended.IsZero() && x.Until.After(now) {
			x.Until = now.Round(0).Add(x.Until.Sub(now))
			list = append(list, x)
		}
	}
	return list
}

// add makes an opening. One that cannot be recorded is in force all the same:
// a full disk may be why somebody has to get in. It would not outlive the daemon.
func (o *openings) add(ctx context.Context, r control.OpenRequest, peers config.Peers) (control.Opening, error) {
	if err := checkOpening(r, peers.Networks[firewall.NetworkSiblings]); err != nil {
		return control.Opening{}, fmt.Errorf("%w: %w", control.ErrRefused, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	o.expire(now)
	if err := o.checkRoom(r); err != nil {
		return control.Opening{}, fmt.Errorf("%w: %w", control.ErrRefused, err)
	}
	id, err := o.newID()
	if err != nil {
		return control.Opening{}, err
	}
	added := control.Opening{
		ID: id, From: r.From, Proto: r.Proto, Port: r.Port, Opened: now.Round(0), Until: now.Add(r.For), Reason: r.Reason, By: r.By,
	}
	o.list = append(slices.Clone(o.list), added)
	o.changes++
	o.log.Warn("opening made", "id", id, "from", r.From.String(), "proto", r.Proto, "port", r.Port,
		"until", added.Until.Format(time.RFC3339), "reason", r.Reason, "by", r.By)
	o.saveErr = o.save(ctx)
	return added, nil
}

func (o *openings) checkRoom(r control.OpenRequest) error {
	open := 0
	for _, x := range o.list {
		if !x.Ended.IsZero() {
			continue
		}
		if x.From == r.From && x.Proto == r.Proto && x.Port == r.Port {
			return fmt.Errorf("it is open already, until %s; `pghardend close --id %s` first to change that", x.Until.Format(time.RFC3339), x.ID)
		}
		if open++; open == maxOpenings {
			return fmt.Errorf("%d openings are in force, which is the most; `pghardend close --id ID` ends one, `pghardend status` lists them", maxOpenings)
		}
	}
	return nil
}

func (o *openings) newID() (string, error) {
	for {
		var b [3]byte
		if _, err := rand.Read(b[:]); err != nil {
			return "", fmt.Errorf("cannot make an id: %w", err)
		}
		id := hex.EncodeToString(b[:])
		if !slices.ContainsFunc(o.list, func(x control.Opening) bool { return x.ID == id }) {
			return id, nil
		}
	}
}

// end ends one opening. If that cannot be recorded, it says so: the next daemon
// would find it open.
func (o *openings) end(ctx context.Context, id, by string) (control.Opening, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	o.expire(now)
	i := slices.IndexFunc(o.list, func(x control.Opening) bool { return x.ID == id })
	if i < 0 {
		return control.Opening{}, fmt.Errorf("%w %q; `pghardend status` lists them", control.ErrNoSuch, id)
	}
	if ended := o.list[i]; !ended.Ended.IsZero() {
		return ended, fmt.Errorf("%w: %s was closed at %s already (%s)", control.ErrRefused, id, ended.Ended.Format(time.RFC3339), ended.EndedBy)
	}
	was := o.list[i].Until
	o.endOne(i, now, by)
	ended := o.list[i]
	o.forget()
	o.saveErr = o.save(ctx)
	if o.saveErr != nil {
		return ended, fmt.Errorf("%s is closed, but a daemon that starts before %s would open it again: %w", id, was.Format(time.RFC3339), o.saveErr)
	}
	return ended, nil
}

// save writes the file. One that could not be read is kept beside it.
func (o *openings) save(ctx context.Context) error {
	if err := o.write(ctx); err != nil {
		return fmt.Errorf("the openings are as they should be, but cannot be recorded; is the disk full or read-only? %w", err)
	}
	return nil
}

func (o *openings) write(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // who asked may have gone
	if err := ownDir(ctx, filepath.Dir(o.file)); err != nil {
		return err
	}
	if o.readErr != nil {
		if err := os.Rename(o.file, o.file+".unreadable"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		o.readErr = nil
	}
	data, err := json.MarshalIndent(openingsDoc{Version: 1, Openings: append([]control.Opening{}, o.list...)}, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(ctx, o.file, data)
}
