package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxProbes   = 70_000                 // more in one Send is an error
	firstWindow = 16                     // probes sent before the first has arrived: they wait for neighbour discovery
	sendWindow  = 512                    // probes on their way at most: the kernel queues 1000 for a CPU
	arriveWait  = time.Second            // for probes to reach the target; the first may have to wait for neighbour discovery
	answerGrace = 150 * time.Millisecond // for answers, once the probes have reached the target
)

// Outcome is what became of probes.
type Outcome struct {
	Sent    int // what the sender's kernel took
	Denied  int // what it refused: dropped on its way out by netfilter, or no route
	Arrived int // what reached the interface of the target, which is before the target's netfilter
	// Delivered is what got past the target's netfilter to where sockets are, whether or not anybody listens. TCP, UDP and
	// ICMP alone: to see others, Deliveries has to take them from the host, which then answers differently.
	Delivered int

	// Answers is everything that came back to the sender's interface: direct answers, and ICMP errors about the probes.
	// It is before the sender's own netfilter. With a spoofed source answers go elsewhere; capture there.
	Answers  []Packet
	Answered int // how many different probes got an answer
}

func (o Outcome) String() string {
	return fmt.Sprintf("sent %d, denied %d, arrived %d, delivered %d, answered %d (%d answers)",
		o.Sent, o.Denied, o.Arrived, o.Delivered, o.Answered, len(o.Answers))
}

// flow identifies a probe among the packets of a capture.
type flow struct {
	src, dst netip.Addr
	proto    uint8
	a, b     uint16 // ports, or the second word of an ICMP header
}

func (p Packet) flow() flow {
	f := flow{p.Src, p.Dst, p.Proto, p.SrcPort, p.DstPort}
	if p.Proto == ProtoICMP || p.Proto == ProtoICMPv6 {
		f.a, f.b = uint16(p.ICMPRest>>16), uint16(p.ICMPRest)
	}
	if p.Proto == ProtoSCTP { // an answer that quotes little
		f.a, f.b = 0, 0
	}
	return f
}

// back is the flow of a direct answer. ICMP answers repeat id and sequence number in place; ports change sides.
func (f flow) back() flow {
	f.src, f.dst = f.dst, f.src
	if f.proto == ProtoTCP || f.proto == ProtoUDP {
		f.a, f.b = f.b, f.a
	}
	return f
}

// Send sends the probes through the host's own netfilter, in order and no faster than the target takes them in, and waits
// for what comes back: not at all if all is answered, else a short while after the last arrival. All go to one address.
// A target that is no host of the bed never "arrives".
func (h *Host) Send(ctx context.Context, probes ...Probe) (Outcome, error) {
	var o Outcome
	if len(probes) == 0 || len(probes) > maxProbes {
		return o, fmt.Errorf("cannot send %d probes: 1 to %d are possible", len(probes), maxProbes)
	}
	raw, flows, err := h.prepare(probes)
	if err != nil {
		return o, err
	}
	answers, err := h.capture(func(p Packet) bool { _, ok := flows.answered(p); return ok }, true)
	if err != nil {
		return o, err
	}
	arrivals, deliveries, err := h.watchTarget(probes, flows)
	if err != nil {
		return o, errors.Join(err, answers.Close())
	}
	err = h.transmit(ctx, &o, probes[0].To, raw, arrivals)
	if err == nil && o.Sent > 0 {
		o.settle(ctx, len(flows), answers, arrivals)
		err = ctx.Err()
	}
	err = errors.Join(err, answers.Close())
	if arrivals != nil {
		err = errors.Join(err, arrivals.Close(), deliveries.Close())
		o.Arrived, o.Delivered = len(arrivals.Packets()), len(deliveries.Packets())
	}
	o.Answers = answers.Packets()
	o.Answered = flows.distinct(o.Answers)
	if err != nil {
		return o, fmt.Errorf("cannot finish probing %s from %s: %w", probes[0].To, h.name, err)
	}
	return o, nil
}

// watchTarget starts recording at the probes' target; nothing if that is no host of the bed.
func (h *Host) watchTarget(probes []Probe, flows flows) (*Capture, *Deliveries, error) {
	target := h.bed.owner(probes[0].To)
	if target == nil {
		return nil, nil, nil
	}
	arrivals, err := target.capture(flows.arrived, true)
	if err != nil {
		return nil, nil, err
	}
	deliveries, err := target.deliveries(flows.arrived, protocolsOf(probes))
	if err != nil {
		return nil, nil, errors.Join(err, arrivals.Close())
	}
	return arrivals, deliveries, nil
}

// flows is the set of the probes.
type flows map[flow]bool

func (h *Host) prepare(probes []Probe) ([][]byte, flows, error) {
	raw := make([][]byte, 0, len(probes))
	set := flows{}
	to := probes[0].To.WithZone("")
	for _, p := range probes {
		p.To = p.To.WithZone("")
		if p.To != to {
			return nil, nil, fmt.Errorf("cannot send to %s and %s at once", to, p.To)
		}
		if !p.From.IsValid() {
			p.From = h.source(to)
		}
		p.From = p.From.WithZone("")
		if !p.From.IsValid() || p.From.Is6() != to.Is6() {
			return nil, nil, fmt.Errorf("cannot send to %s from %s: no source address of the family", to, h.name)
		}
		b := p.marshal()
		parsed, ok := parsePacket(b)
		if !ok {
			return nil, nil, fmt.Errorf("cannot send to %s: the probe is no IP packet", to)
		}
		raw = append(raw, b)
		set[parsed.flow()] = true
	}
	return raw, set, nil
}

func (s flows) arrived(p Packet) bool {
	return !p.Out && s[p.flow()] && (p.Proto != ProtoTCP || p.Seq == probeSeq)
}

// answered returns the probe that the packet answers.
func (s flows) answered(p Packet) (flow, bool) {
	if p.Out || p.neighbour() {
		return flow{}, false
	}
	if p.Quoted != nil {
		f := p.Quoted.flow()
		return f, s[f]
	}
	f := p.flow().back()
	return f, s[f]
}

func (s flows) distinct(answers []Packet) int {
	seen := flows{}
	for _, p := range answers {
		if f, ok := s.answered(p); ok {
			seen[f] = true
		}
	}
	return len(seen)
}

// transmit sends the packets with a raw socket whose packets pass the OUTPUT chain (raw(7), IPPROTO_RAW).
func (h *Host) transmit(ctx context.Context, o *Outcome, to netip.Addr, raw [][]byte, arrivals *Capture) error {
	return h.Do(func() error {
		family := unix.AF_INET
		if to.Is6() {
			family = unix.AF_INET6
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("cannot open a raw socket: %w", err)
		}
		defer func() { _ = unix.Close(fd) }() // what was sent is sent
		sa, err := h.sockaddr(to)
		if err != nil {
			return err
		}
		window := firstWindow
		for i, b := range raw {
			err := unix.Sendto(fd, b, 0, sa)
			switch {
			case err == nil:
				o.Sent++
			case isDenied(err), isUnreachable(err):
				o.Denied++
			default:
				return fmt.Errorf("cannot send probe %d: %w", i, err)
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if arrivals == nil || o.Sent < window {
				continue
			}
			if !awaitCount(ctx, arrivals.recorder, o.Sent, arriveWait) {
				arrivals = nil // they do not get there; do not wait for each window
			}
			window = o.Sent + sendWindow
		}
		return nil
	})
}

func (h *Host) sockaddr(to netip.Addr) (unix.Sockaddr, error) {
	if to.Is4() {
		return &unix.SockaddrInet4{Addr: to.As4()}, nil
	}
	sa := &unix.SockaddrInet6{Addr: to.As16()}
	if to.IsLinkLocalUnicast() || to.IsMulticast() {
		nic, err := h.netlink.LinkByName(nicName)
		if err != nil {
			return nil, fmt.Errorf("cannot find the interface: %w", err)
		}
		sa.ZoneId = uint32(nic.Attrs().Index)
	}
	return sa, nil
}

// settle waits until everything that will happen has happened.
func (o *Outcome) settle(ctx context.Context, distinct int, answers, arrivals *Capture) {
	arrived := arrivals != nil && awaitCount(ctx, arrivals.recorder, o.Sent, arriveWait)
	wait := answerGrace
	if !arrived {
		wait = arriveWait // an answer may come from somebody on the way
	}
	if distinct > o.Sent {
		distinct = o.Sent
	}
	awaitCount(ctx, answers.recorder, distinct, wait)
}

// awaitCount says whether n packets were recorded within d of the last progress.
func awaitCount(ctx context.Context, c *recorder, n int, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for have := 0; ; {
		fresh, more := c.from(have)
		if have += len(fresh); have >= n {
			return true
		}
		if len(fresh) > 0 {
			timer.Reset(d)
		}
		select {
		case <-more:
		case <-timer.C:
			return false
		case <-c.done:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func isDenied(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) }

func isUnreachable(err error) bool {
	return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EADDRNOTAVAIL)
}
