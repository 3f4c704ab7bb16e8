package reach

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/pghardend/pghardend/internal/testbed"
)

// attempts for a cell that is not open: a lost probe, or one over an echo limit, would look like a dropped one.
const attempts = 2

// Outcome is what became of a cell's probe.
type Outcome int

// The outcomes, from the least that gets through.
const (
	Blocked Outcome = iota
	OneWay          // the target's filter let the probe in, but no answer came back through both filters
	Through         // an answer, be it no, came back to the sender; for UDP, where silence is one, the probe got in
)

func (o Outcome) String() string {
	return [...]string{"is blocked", "gets in without an answer", "gets through"}[o]
}

// Measure probes every cell between the hosts of a bed. Probes are raw packets that pass the sender's own filter like any
// other, all at once: there are too many cells to wait for each that is dropped. What gets in is seen behind the target's
// filter, so it does not matter who listens.
func Measure(ctx context.Context, bed *testbed.Bed, hosts []*testbed.Host) (map[Cell]Outcome, error) {
	got := map[Cell]Outcome{}
	judged := map[Cell]bool{}
	left := cellsOf(hosts)
	for range attempts {
		fates, err := bed.SendAll(ctx, shots(bed, left))
		if err != nil {
			return nil, err
		}
		again := left[:0:0]
		for i, c := range left {
			got[c] = max(got[c], outcome(c.Probe, fates[i]))
			judged[c] = judged[c] || fates[i].Denied || fates[i].Arrived || fates[i].Delivered
			if got[c] != Through {
				again = append(again, c)
			}
		}
		left = again
	}
	for _, c := range left {
		if !judged[c] {
			return nil, fmt.Errorf("cannot measure %s: the probe got lost between the two hosts' filters", c)
		}
	}
	return got, nil
}

func outcome(p Probe, f testbed.Fate) Outcome {
	switch {
	case f.Delivered && (f.Returned || p.Proto == UDP):
		return Through
	case f.Delivered:
		return OneWay
	}
	return Blocked
}

// shots are the packets for the cells, in their order.
func shots(bed *testbed.Bed, cells []Cell) []testbed.Shot {
	list := make([]testbed.Shot, 0, len(cells))
	for _, c := range cells {
		at := addressOf(bed.Host(c.To), c.V6)
		s := testbed.Shot{From: bed.Host(c.From)}
		switch to := netip.AddrPortFrom(at, c.Probe.Port); c.Probe.Proto {
		case TCP:
			s.Probe = testbed.TCPProbe(to, testbed.SYN)
		case UDP:
			s.Probe = testbed.UDPProbe(to, []byte("?"))
		default:
			s.Probe = testbed.EchoProbes(at, 1)[0]
		}
		list = append(list, s)
	}
	return list
}

func cellsOf(hosts []*testbed.Host) []Cell {
	names := make([]string, len(hosts))
	for i, h := range hosts {
		names[i] = h.Name()
	}
	return cells(names)
}

func addressOf(h *testbed.Host, v6 bool) netip.Addr {
	if v6 {
		return h.V6()
	}
	return h.V4()
}
