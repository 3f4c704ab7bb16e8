package firewall

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// ErrNoReflex says that rules cannot be put back by netlink: the backend is
// legacy, or the kernel does not let us. The reason is wrapped.
var ErrNoReflex = errors.New("rules cannot be put back by netlink")

// ErrNoImage says that Learn has not succeeded since Forget, so that it is not
// known what could be put back.
var ErrNoImage = errors.New("there is no image of the rules")

// reflexTries bounds how often Repair starts again since somebody else has
// changed rules meanwhile.
const reflexTries = 3

// Reflex puts our rules back without a command, within a millisecond: from an
// image of them, taken when Diff had found them right, as one nf_tables
// transaction for each table.
//
// It puts back rules of our chains, our jumps, and the chains and tables that
// hold them, if they are gone. Rules that still are as they were stay, with what
// the kernel has counted for them. A jump is moved above rules that may accept.
// What it leaves to Diff: sets, and chains of ours from another version.
//
// The image is the kernel's own bytes. It is not what is right: that is the
// Ruleset, and a look by Observe should follow on each Repair. It is void when
// rules are written by Apply; call Forget before and Learn after.
//
// One goroutine at a time may use it, save for Close and Port.
type Reflex struct {
	socket     *nftSocket
	own        *ownCommits // has the socket's port
	image      *image
	former     *image      // the one that was forgotten last
	generation uint32      // of the last look
	found      [3]nftTable // of the last look; its memory is used again, as is the batch's
	batch      nftWriter

	mu     sync.Mutex // Close against the others
	closed bool
}

// Repair is what a Reflex has put back.
type Repair struct {
	Plan                 // Apply has nothing to do for it
	Generation uint32    // of the rules since
	At         time.Time // when the kernel acknowledged that nothing was open any more

	interim [3][]string // chains with a shutter's rules, which the exact ones are to follow
}

// tell adds what is new in p: a change is told when it is shut off, and seen again
// when the exact rules follow.
func (r *Repair) tell(p Plan) {
	r.Foreign = addNew(r.Foreign, p.Foreign)
	for _, c := range p.Changes {
		i := slices.IndexFunc(r.Changes, func(o Change) bool {
			return o.Resource == c.Resource && o.Family == c.Family && o.Name == c.Name
		})
		if i < 0 {
			r.Changes = append(r.Changes, c)
		} else {
			r.Changes[i].Lines = addNew(r.Changes[i].Lines, c.Lines)
		}
	}
}

// addNew adds what is not in list; there may be ten thousand.
func addNew(list, more []string) []string {
	if slices.Equal(list, more) {
		return list
	}
	known := make(map[string]bool, len(list))
	for _, s := range list {
		known[s] = true
	}
	for _, s := range more {
		if !known[s] {
			list = append(list, s)
		}
	}
	return list
}

// Repaired is when nothing was open any more. Exact rules may have followed later.
func (r Repair) Repaired() time.Time { return r.At }

// OpenReflex opens the Reflex of the calling thread's network namespace. Commits
// of it are our Own.
//
// Needs CAP_NET_ADMIN, and Linux 4.20 for the numbers of sets.
func (f *Firewall) OpenReflex() (*Reflex, error) {
	if f.backend != BackendNFT {
		return nil, fmt.Errorf("%w: the backend is %s", ErrNoReflex, f.backend)
	}
	s, err := openNftSocket()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoReflex, err)
	}
	if _, err := s.generation(); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrNoReflex, err), s.close())
	}
	f.own.addPort(s.port)
	return &Reflex{socket: s, own: f.own}, nil
}

// Port is the netlink port that this Reflex commits from.
func (r *Reflex) Port() uint32 { return r.socket.port }

// Close closes the socket.
func (r *Reflex) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed, r.image = true, nil
	r.own.dropPort(r.socket.port)
	return r.socket.close()
}

var errReflexClosed = fmt.Errorf("%w: it is closed", ErrNoReflex)

// Learn takes the image. got must be what Diff found equal to want; Learn fails
// if rules have changed since got was read. An image of the same rules, taken
// earlier, is kept then; any other is void.
func (r *Reflex) Learn(want Ruleset, got Observed) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errReflexClosed
	}
	im, err := r.socket.takeImage(want, got)
	if err != nil {
		if !r.image.isOf(want) {
			r.image = nil
		}
		return fmt.Errorf("cannot take an image of the rules: %w", err)
	}
	r.image, r.generation = im, im.generation
	if im.asleep {
		r.generation = 0 // no generation: there is something to repair
	}
	return nil
}

// Forget drops the image, unless the plan that is about to be applied writes no
// rules: Repair makes sure by itself that the sets are those that it knew.
func (r *Reflex) Forget(p Plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.writesRules() {
		r.image, r.former = nil, r.image
	}
}

// Recall takes the image up again that Forget has dropped, if Apply failed and
// wrote nothing: what was in force still is, and it should be put back as ever
// while the new rules cannot be written.
func (r *Reflex) Recall() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.image != nil || r.former == nil || r.closed {
		return
	}
	if generation, err := r.socket.generation(); err == nil && generation == r.generation {
		r.image = r.former
	}
	r.former = nil
}

// Learned says whether there is an image.
func (r *Reflex) Learned() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.image != nil
}

// Changed says whether somebody has changed nf_tables rules, ours or not, since
// the last Learn or Repair. It is one question to the kernel. If there is no
// answer, or no image, it is true.
func (r *Reflex) Changed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.image == nil {
		return true
	}
	generation, err := r.socket.generation()
	return err != nil || generation != r.generation
}

// Repair compares the rules with the image and puts back what differs; the
// result is Empty if nothing does. If rules change between the look and the
// commit, the kernel refuses it, and Repair looks again. With an error the result
// is what has been put back before it.
func (r *Reflex) Repair() (Repair, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return Repair{}, errReflexClosed
	case r.image == nil:
		return Repair{}, fmt.Errorf("cannot put the rules back: %w", ErrNoImage)
	}
	var done Repair
	var err error
	for range reflexTries { // others may change rules meanwhile
		if err = r.repair(&done); !errors.Is(err, errNftAgain) {
			break
		}
	}
	if err != nil {
		return done, fmt.Errorf("cannot put the rules back: %w", err)
	}
	return done, nil
}

// repair adds what it puts back to done.
func (r *Reflex) repair(done *Repair) error {
	defer r.socket.forget()
	generation, err := r.look()
	if err != nil {
		return err
	}
	done.Generation = generation
	if generation == r.generation {
		return nil
	}
	if err := r.shut(done); err != nil {
		return err
	}
	for i, t := range r.image.tables {
		if t == nil {
			continue
		}
		if err := r.repairTable(t, &r.found[i], done); err != nil {
			return fmt.Errorf("%s: %w", t.id, err)
		}
	}
	r.generation = done.Generation
	return nil
}

// shut closes what the kernel would make the exact rules wait for, and looks again.
func (r *Reflex) shut(done *Repair) error {
	var s shutter
	err := r.compare(done, true, func(e *edits, t *imageTable, found *nftTable) { s.add(e, t, found) })
	if err != nil || len(s.tables) == 0 {
		return err
	}
	s.write(&edits{batch: &r.batch}, done.Generation)
	if err := r.commit(done); err != nil {
		return err
	}
	done.At = time.Now()
	for _, t := range s.tables {
		done.interim[t.table.id] = slices.Concat(done.interim[t.table.id], t.shut, t.lead)
	}
	var found Plan
	err = r.compare(done, false, func(e *edits, _ *imageTable, _ *nftTable) { // for what it says
		found.Changes, found.Foreign = append(found.Changes, e.plan.Changes...), append(found.Foreign, e.plan.Foreign...)
	})
	if err != nil {
		return err
	}
	done.tell(found)
	generation, err := r.look()
	if err == nil && generation != done.Generation {
		err = errNftAgain // with what the shutter wrote in it
	}
	return err
}

// compare compares all tables as the last look found them.
func (r *Reflex) compare(done *Repair, brief bool, each func(*edits, *imageTable, *nftTable)) error {
	for i, t := range r.image.tables {
		if t == nil {
			continue
		}
		e := edits{batch: &r.batch, chain: r.chainOf, interim: done.interim[t.id], brief: brief}
		if err := e.compare(t, &r.found[i], done.Generation); err != nil {
			return fmt.Errorf("%s: %w", t.id, err)
		}
		each(&e, t, &r.found[i])
	}
	return nil
}

// repairTable is a transaction of its own, so that IPv4 need not wait for IPv6:
// after nft flush ruleset each takes the kernel about a millisecond.
func (r *Reflex) repairTable(t *imageTable, found *nftTable, done *Repair) error {
	e := edits{batch: &r.batch, chain: r.chainOf, interim: done.interim[t.id]}
	if err := e.compare(t, found, done.Generation); err != nil {
		return err
	}
	if e.plan.Empty() {
		return nil
	}
	if err := r.checkSets(e.sets); err != nil {
		return err
	}
	if err := r.commit(done); err != nil {
		return err
	}
	if e.open || done.At.IsZero() {
		done.At = time.Now()
	}
	done.interim[t.id] = nil
	done.tell(e.plan)
	return nil
}

// commit sends the batch.
func (r *Reflex) commit(done *Repair) error {
	if err := r.socket.commit(r.batch.data); err != nil {
		return err
	}
	// The kernel has held the lock of commits from its look at the generation on.
	if done.Generation++; done.Generation == 0 {
		done.Generation = 1 // nf_tables_commit leaves 0 out
	}
	return nil
}

// look reads what the image is to be compared with. If the generation is that
// of the last look, nothing is read.
func (r *Reflex) look() (generation uint32, err error) {
	if generation, err = r.socket.lookTables(&r.found); err != nil || generation == r.generation {
		return generation, err
	}
	for i, t := range r.image.tables {
		if t == nil {
			continue
		}
		if err := r.lookTable(t, &r.found[i], generation); err != nil {
			return 0, fmt.Errorf("%s: %w", t.id, err)
		}
	}
	return generation, nil
}

func (r *Reflex) lookTable(t *imageTable, found *nftTable, generation uint32) error {
	found.watch(len(t.chains)+len(t.bases), func(i int) string {
		if i < len(t.chains) {
			return t.chains[i].name
		}
		return t.bases[i-len(t.chains)].name
	})
	if found.exists {
		if err := r.socket.lookRules(t.id, generation, t.apart, found); err != nil {
			return err
		}
		t.apart = t.apart || found.foreign > manyForeign
	}
	for i := range found.chains {
		c := &found.chains[i]
		if len(c.rules) > 0 && i < len(t.chains) {
			continue // a chain of ours that is there
		}
		hook, exists := nftHook{}, false
		if found.exists {
			var err error
			if hook, exists, err = r.socket.lookChain(t.id, c.name); err != nil {
				return err
			}
		}
		c.hook, c.absent = hook, !exists
	}
	return nil
}

// chainOf reads the rules of a foreign chain.
func (r *Reflex) chainOf(id TableID, chain string, generation uint32) ([]nftRule, error) {
	var rules []nftRule
	err := r.socket.dumpRules(id, chain, generation, func(_ []byte, rule nftRule) { rules = append(rules, rule) })
	return rules, err
}

// checkSets makes sure that the kernel's numbers of sets still mean what they
// meant: somebody may have removed the rules and then a set, and made it anew.
func (r *Reflex) checkSets(indexes []uint16) error {
	now, err := r.socket.lookSets(indexes)
	if err != nil {
		return err
	}
	for _, index := range indexes {
		if want := r.image.sets[index]; now[index] != want || want == "" {
			return fmt.Errorf("the set %s is not there any more, or is another one of that name", want)
		}
	}
	return nil
}
