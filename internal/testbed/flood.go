package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const (
	maxFloodRate  = 50_000    // a second
	maxFloodTotal = 2_000_000 // packets
	maxFloodKinds = 1 << 16   // different sources and ports that are told apart
	floodTurn     = 2 * time.Millisecond
)

// FloodSpec describes a flood. All its packets go to one address.
type FloodSpec struct {
	Probe func(i int) Probe // makes the i-th packet; the functions that make probes can be used
	Rate  int               // packets a second at most, up to 50 000
	Total int               // packets, up to 2 000 000; the flood ends with the last
}

// SYNFlood is a flood of connection requests to a port from the sender's own address, each from another port, 10 000 in turn.
func SYNFlood(to netip.AddrPort, rate, total int) FloodSpec {
	return FloodSpec{func(int) Probe { return TCPProbe(to, SYN) }, rate, total}
}

// UDPFlood is a flood of small datagrams.
func UDPFlood(to netip.AddrPort, rate, total int) FloodSpec {
	return FloodSpec{func(int) Probe { return UDPProbe(to, []byte("flood")) }, rate, total}
}

// EchoFlood is a flood of echo requests with one identifier.
func EchoFlood(to netip.Addr, rate, total int) FloodSpec {
	kind := uint8(ipv4.ICMPTypeEcho)
	if to.Is6() {
		kind = uint8(ipv6.ICMPTypeEchoRequest)
	}
	id := uint32(sourcePort()) << 16
	return FloodSpec{func(i int) Probe { return ICMPProbe(to, kind, 0, id|uint32(i)&0xffff, make([]byte, 32)) }, rate, total}
}

// FloodResult counts a flood's packets.
type FloodResult struct {
	Sent      int // what the sender's kernel took
	Denied    int // what it refused
	Arrived   int // at the target's interface
	Delivered int // past the target's netfilter; see Outcome.Delivered
}

func (r FloodResult) String() string {
	return fmt.Sprintf("sent %d, denied %d, arrived %d, delivered %d", r.Sent, r.Denied, r.Arrived, r.Delivered)
}

// Flood is a flood that is going on. Stop it.
type Flood struct {
	from       *Host
	spec       FloodSpec
	to         netip.Addr
	wire       *Capture
	deliveries *Deliveries
	stop       context.CancelFunc
	done       chan struct{} // closed when the last packet was sent

	sent, denied, arrived, delivered atomic.Int64

	mu    sync.RWMutex
	kinds map[flow]bool // what was sent, without what differs from packet to packet
	err   error

	stopping sync.Once
	result   FloodResult
	stopErr  error
}

// Flood starts to send packets in the background, no faster than the rate, until Stop, the last one, or the end of ctx or
// the bed. The packets pass the host's own netfilter and are counted, not kept. The target is a host of the bed.
func (h *Host) Flood(ctx context.Context, spec FloodSpec) (*Flood, error) {
	if spec.Rate < 1 || spec.Rate > maxFloodRate || spec.Total < 1 || spec.Total > maxFloodTotal {
		return nil, fmt.Errorf("cannot flood with %d packets at %d a second: 1 to %d at 1 to %d are possible", spec.Total, spec.Rate, maxFloodTotal, maxFloodRate)
	}
	first := spec.Probe(0)
	f := &Flood{from: h, spec: spec, to: first.To.WithZone(""), done: make(chan struct{}), kinds: map[flow]bool{}}
	target := h.bed.owner(f.to)
	if target == nil {
		return nil, fmt.Errorf("cannot flood %s: no host of the bed has the address", f.to)
	}
	var err error
	if f.wire, err = target.capture(f.counts(&f.arrived), true); err != nil {
		return nil, err
	}
	if f.deliveries, err = target.deliveries(f.counts(&f.delivered), protocolsOf([]Probe{first})); err != nil {
		return nil, errors.Join(err, f.wire.Close())
	}
	ctx, f.stop = context.WithCancel(ctx)
	go func() {
		select {
		case <-h.bed.done:
			f.stop()
		case <-ctx.Done():
		}
	}()
	go f.run(ctx)
	return f, nil
}

// counts makes a filter that counts the flood's packets, and keeps none.
func (f *Flood) counts(n *atomic.Int64) func(Packet) bool {
	return func(p Packet) bool {
		f.mu.RLock()
		defer f.mu.RUnlock()
		if !p.Out && f.kinds[p.kind()] && (p.Proto != ProtoTCP || p.Seq == probeSeq) {
			n.Add(1)
		}
		return false
	}
}

// kind is the flow without the source port and without what numbers echo requests.
func (p Packet) kind() flow {
	f := flow{src: p.Src, dst: p.Dst, proto: p.Proto, b: p.DstPort}
	if p.Proto == ProtoICMP || p.Proto == ProtoICMPv6 {
		f.a, f.b = uint16(p.ICMPType), uint16(p.ICMPCode)
	}
	return f
}

// run sends until the end.
func (f *Flood) run(ctx context.Context) {
	defer close(f.done)
	err := f.from.Do(func() error {
		family := unix.AF_INET
		if f.to.Is6() {
			family = unix.AF_INET6
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("cannot open a raw socket: %w", err)
		}
		defer func() { _ = unix.Close(fd) }() // what was sent is sent
		sa, err := f.from.sockaddr(f.to)
		if err != nil {
			return err
		}
		return f.send(ctx, fd, sa)
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *Flood) send(ctx context.Context, fd int, sa unix.Sockaddr) error {
	tick := time.NewTicker(floodTurn)
	defer tick.Stop()
	start := time.Now()
	for i := 0; i < f.spec.Total; {
		// What is due by now, but never so much at once that the rate means nothing after a pause.
		due := min(f.spec.Total, int(time.Since(start).Seconds()*float64(f.spec.Rate))+1, i+f.spec.Rate/50+1)
		for ; i < due; i++ {
			if err := f.one(i, fd, sa); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

func (f *Flood) one(i, fd int, sa unix.Sockaddr) error {
	p := f.spec.Probe(i)
	raw, _, err := f.from.prepare([]Probe{p})
	if err != nil {
		return err
	}
	if p.To.WithZone("") != f.to {
		return fmt.Errorf("cannot flood %s and %s at once", f.to, p.To)
	}
	if err := f.learn(raw[0]); err != nil {
		return err
	}
	err = unix.Sendto(fd, raw[0], 0, sa)
	switch {
	case err == nil:
		f.sent.Add(1)
	case isDenied(err), isUnreachable(err), errors.Is(err, unix.ENOBUFS):
		f.denied.Add(1)
	default:
		return fmt.Errorf("cannot send packet %d: %w", i, err)
	}
	return nil
}

// learn makes the packet known to those who count, before it is sent.
func (f *Flood) learn(raw []byte) error {
	p, ok := parsePacket(raw)
	if !ok {
		return errors.New("the probe is no IP packet")
	}
	f.mu.RLock()
	known := f.kinds[p.kind()]
	f.mu.RUnlock()
	if known {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.kinds) >= maxFloodKinds {
		return fmt.Errorf("more than %d different sources and ports", maxFloodKinds)
	}
	f.kinds[p.kind()] = true
	return nil
}

// Now returns the counts so far.
func (f *Flood) Now() FloodResult {
	return FloodResult{int(f.sent.Load()), int(f.denied.Load()), int(f.arrived.Load()), int(f.delivered.Load())}
}

// Done is closed when the last packet was sent.
func (f *Flood) Done() <-chan struct{} { return f.done }

// Stop ends the flood, waits until what was sent has arrived or no more comes, and returns the counts. An error means that
// they cannot be trusted.
func (f *Flood) Stop() (FloodResult, error) {
	f.stopping.Do(func() {
		f.stop()
		<-f.done
		f.settle()
		f.stopErr = errors.Join(f.wire.Close(), f.deliveries.Close())
		f.mu.RLock()
		f.stopErr = errors.Join(f.stopErr, f.err)
		f.mu.RUnlock()
		if f.stopErr != nil {
			f.stopErr = fmt.Errorf("cannot count the flood from %s to %s: %w", f.from.name, f.to, f.stopErr)
		}
		f.result = f.Now()
	})
	return f.result, f.stopErr
}

// settle waits until all has arrived, or nothing new has for a while.
func (f *Flood) settle() {
	tick := time.NewTicker(awaitInterval)
	defer tick.Stop()
	last, since := f.Now(), time.Now()
	for time.Since(since) < answerGrace {
		<-tick.C
		now := f.Now()
		if now.Delivered >= now.Sent {
			return
		}
		if now != last {
			last, since = now, time.Now()
		}
	}
}
