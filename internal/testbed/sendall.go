package testbed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxShots  = portCount              // more would share source ports
	shotQuiet = 400 * time.Millisecond // nothing new for that long: nothing more will come
)

// Shot is one probe and who sends it.
type Shot struct {
	From  *Host
	Probe Probe
}

// Fate is what became of a shot.
type Fate struct {
	Denied    bool    // the sender's kernel refused it
	Arrived   bool    // at the interface of the target, before its netfilter
	Delivered bool    // past the target's netfilter; see Outcome.Delivered
	Answer    *Packet // the first that came back to the sender's interface, nil if none did
	Returned  bool    // an answer got past the sender's own netfilter
}

func (f Fate) String() string {
	s := "lost on the way"
	switch {
	case f.Denied:
		s = "denied by the sender"
	case f.Delivered:
		s = "delivered"
	case f.Arrived:
		s = "dropped by the target"
	}
	switch {
	case f.Answer == nil:
		return s + ", no answer"
	case f.Returned:
		return s + ", answer returned"
	}
	return s + ", answer dropped by the sender"
}

// barrage is the work of one SendAll.
type barrage struct {
	shots   []Shot
	raw     [][]byte
	fates   []Fate
	index   map[flow]int // of the shot
	watches []*watch
}

// watch is what is recorded on one host: shots that come, and answers to those it sent.
type watch struct {
	host       *Host
	wire       *Capture
	deliveries *Deliveries
}

// SendAll sends many probes, from and to any hosts, and tells the fate of each, in their order. It sends all of a host's
// before the next one's, and takes half a second more than that.
func (b *Bed) SendAll(ctx context.Context, shots []Shot) ([]Fate, error) {
	a, err := newBarrage(shots)
	if err != nil {
		return nil, err
	}
	err = a.watch(b)
	if err == nil {
		err = a.fire(ctx)
	}
	for _, w := range a.watches {
		err = errors.Join(err, w.close())
	}
	if err != nil {
		return nil, fmt.Errorf("cannot finish probing: %w", err)
	}
	a.judge()
	return a.fates, nil
}

func newBarrage(shots []Shot) (*barrage, error) {
	if len(shots) > maxShots {
		return nil, fmt.Errorf("cannot send %d probes at once: %d are possible", len(shots), maxShots)
	}
	a := &barrage{shots: shots, fates: make([]Fate, len(shots)), index: map[flow]int{}}
	for i, s := range shots {
		raw, flows, err := s.From.prepare([]Probe{s.Probe})
		if err != nil {
			return nil, err
		}
		a.raw = append(a.raw, raw[0])
		for f := range flows {
			if _, twice := a.index[f]; twice {
				return nil, fmt.Errorf("cannot tell two probes from %s to %s apart", f.src, f.dst)
			}
			a.index[f] = i
		}
	}
	return a, nil
}

// watch starts recording on all hosts of the bed that send or are sent to.
func (a *barrage) watch(b *Bed) error {
	involved := map[*Host]bool{}
	var probes []Probe
	for _, s := range a.shots {
		involved[s.From] = true
		if target := b.owner(s.Probe.To); target != nil {
			involved[target] = true
		}
		probes = append(probes, s.Probe)
	}
	for h := range involved {
		w := &watch{host: h}
		a.watches = append(a.watches, w)
		var err error
		if w.wire, err = h.capture(a.concerns, true); err != nil {
			return err
		}
		if w.deliveries, err = h.deliveries(a.concerns, protocolsOf(probes)); err != nil {
			return err
		}
	}
	return nil
}

func (w *watch) close() error {
	var errs []error
	if w.wire != nil {
		errs = append(errs, w.wire.Close())
	}
	if w.deliveries != nil {
		errs = append(errs, w.deliveries.Close())
	}
	return errors.Join(errs...)
}

// concerns says whether a packet is a shot or an answer to one.
func (a *barrage) concerns(p Packet) bool {
	_, _, ok := a.shotOf(p)
	return ok
}

// shotOf returns the shot that a packet is or, with answer true, answers.
func (a *barrage) shotOf(p Packet) (i int, answer, ok bool) {
	if p.Out || p.neighbour() {
		return 0, false, false
	}
	if p.Quoted != nil {
		i, ok = a.index[p.Quoted.flow()]
		return i, true, ok
	}
	f := p.flow()
	if i, ok = a.index[f]; ok && (p.Proto != ProtoTCP || p.Seq == probeSeq) {
		return i, false, true
	}
	i, ok = a.index[f.back()]
	return i, true, ok
}

// fire sends host by host, and waits until nothing more comes.
func (a *barrage) fire(ctx context.Context) error {
	byHost := map[*Host][]int{}
	var order []*Host
	for i, s := range a.shots {
		if byHost[s.From] == nil {
			order = append(order, s.From)
		}
		byHost[s.From] = append(byHost[s.From], i)
	}
	sent := 0
	for _, h := range order {
		list := byHost[h]
		for len(list) > 0 { // a few at a time: the kernel queues 1000 packets for a CPU
			n := min(len(list), sendWindow/4)
			if err := h.Do(func() error { return a.send(h, list[:n], &sent) }); err != nil {
				return err
			}
			list = list[n:]
			a.awaitQuiet(ctx, sent, shotQuiet/8)
		}
	}
	a.awaitQuiet(ctx, 2*len(a.shots)+1, shotQuiet) // for answers, of which one may have more
	return ctx.Err()
}

// send sends some of a host's shots; it runs inside the host.
func (a *barrage) send(h *Host, list []int, sent *int) error {
	fds := map[bool]int{}
	for _, v6 := range []bool{false, true} {
		family := unix.AF_INET
		if v6 {
			family = unix.AF_INET6
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("cannot open a raw socket: %w", err)
		}
		defer func() { _ = unix.Close(fd) }() // what was sent is sent
		fds[v6] = fd
	}
	for _, i := range list {
		to := a.shots[i].Probe.To
		sa, err := h.sockaddr(to)
		if err != nil {
			return err
		}
		err = unix.Sendto(fds[to.Is6()], a.raw[i], 0, sa)
		switch {
		case err == nil:
			*sent++
		case isDenied(err), isUnreachable(err):
			a.fates[i].Denied = true
		default:
			return fmt.Errorf("cannot send a probe to %s: %w", to, err)
		}
	}
	return nil
}

// awaitQuiet waits until n packets have been recorded on the wire, or none for d.
func (a *barrage) awaitQuiet(ctx context.Context, n int, d time.Duration) {
	tick := time.NewTicker(awaitInterval / 2)
	defer tick.Stop()
	last, since := -1, time.Now()
	for {
		have := 0
		for _, w := range a.watches {
			fresh, _ := w.wire.from(0)
			have += len(fresh)
		}
		if have != last {
			last, since = have, time.Now()
		}
		if have >= n || time.Since(since) >= d {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// judge reads the fates from the records.
func (a *barrage) judge() {
	for _, w := range a.watches {
		for _, p := range w.wire.Packets() {
			i, answer, _ := a.shotOf(p)
			f := &a.fates[i]
			switch {
			case !answer:
				f.Arrived = true
			case w.host == a.shots[i].From && f.Answer == nil:
				f.Answer = &p
			}
		}
		for _, p := range w.deliveries.Packets() {
			i, answer, _ := a.shotOf(p)
			switch {
			case !answer:
				a.fates[i].Delivered = true
			case w.host == a.shots[i].From:
				a.fates[i].Returned = true
			}
		}
	}
}
