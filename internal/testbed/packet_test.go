package testbed

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

var (
	src4, dst4 = netip.MustParseAddr("10.20.1.66"), netip.MustParseAddr("10.20.1.10")
	src6, dst6 = netip.MustParseAddr("fd00:20:1::66"), netip.MustParseAddr("fd00:20:1::10")
)

// parsed returns the packet as it goes out and as the parser sees it.
func parsed(t *testing.T, p Probe) Packet {
	t.Helper()
	p.From = src4
	if p.To.Is6() {
		p.From = src6
	}
	got, ok := parsePacket(p.marshal())
	if !ok {
		t.Fatalf("the parser refuses the probe %+v", p)
	}
	got.Head = p.marshal()
	return got
}

func TestProbesParse(t *testing.T) {
	for _, to := range []netip.Addr{dst4, dst6} {
		p := parsed(t, TCPProbe(netip.AddrPortFrom(to, 5432), SYN))
		if p.Dst != to || p.Proto != ProtoTCP || p.DstPort != 5432 || p.Flags != SYN || p.Data != 0 {
			t.Errorf("SYN: %s", p)
		}
		if p.SrcPort < firstPort || p.SrcPort >= firstPort+portCount {
			t.Errorf("source port %d is outside of the probes' range", p.SrcPort)
		}
		p = parsed(t, UDPProbe(netip.AddrPortFrom(to, 53), []byte("x")))
		if p.Proto != ProtoUDP || p.DstPort != 53 {
			t.Errorf("UDP: %s", p)
		}
		p = parsed(t, ProtoProbe(to, ProtoGRE))
		if p.Proto != ProtoGRE || p.Src.Is6() != to.Is6() {
			t.Errorf("GRE: %s", p)
		}
	}
	if p := parsed(t, TimestampProbe(dst4)); p.ICMPType != 13 || p.Proto != ProtoICMP {
		t.Errorf("timestamp: %s", p)
	}
	if p := parsed(t, EchoProbes(dst6, 3)[2]); p.ICMPType != 128 || p.ICMPRest&0xffff != 2 {
		t.Errorf("third echo: %s", p)
	}
}

// A checksum over data that contains its own checksum is 0.
func TestChecksums(t *testing.T) {
	for _, to := range []netip.Addr{dst4, dst6} {
		for name, p := range map[string]Probe{
			"tcp": TCPProbe(netip.AddrPortFrom(to, 1), SYN), "udp": UDPProbe(netip.AddrPortFrom(to, 1), []byte("odd")),
			"icmp": EchoProbes(to, 1)[0],
		} {
			p.From = src4
			if to.Is6() {
				p.From = src6
			}
			body := append([]byte(nil), p.Payload...)
			p.sum(body)
			whole := body
			if p.Proto != ProtoICMP {
				whole = append(p.pseudoHeader(len(body)), body...)
			}
			if sum := checksum(whole); sum != 0 {
				t.Errorf("%s to %s: checksum %#x does not check", name, to, sum)
			}
		}
	}
	// RFC 1071, section 3: the sum is ddf2.
	if sum := checksum([]byte{0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7}); sum != ^uint16(0xddf2) {
		t.Errorf("RFC 1071's example: %#x", sum)
	}
}

func TestAnswersAreRecognised(t *testing.T) {
	syn := TCPProbe(netip.AddrPortFrom(dst4, 5432), SYN)
	sent := parsed(t, syn)
	set := flows{sent.flow(): true}
	answer := sent
	answer.Src, answer.Dst, answer.SrcPort, answer.DstPort = sent.Dst, sent.Src, sent.DstPort, sent.SrcPort
	syn.From = src4
	unreachable := ICMPProbe(src4, 3, 13, 0, syn.marshal())
	unreachable.From = netip.MustParseAddr("10.20.1.1") // a router on the way
	about, ok := parsePacket(unreachable.marshal())
	if !ok || about.Quoted == nil || about.Quoted.DstPort != 5432 {
		t.Fatalf("an ICMP error does not show what it is about: %s", about)
	}
	wrong := answer
	wrong.DstPort++
	outgoing := answer
	outgoing.Out = true
	for name, c := range map[string]struct {
		p    Packet
		want bool
	}{"reset": {answer, true}, "icmp error": {about, true}, "other port": {wrong, false}, "outgoing": {outgoing, false}, "itself": {sent, false}} {
		if _, got := set.answered(c.p); got != c.want {
			t.Errorf("%s is an answer: %v, want %v", name, got, c.want)
		}
	}
	if n := set.distinct([]Packet{answer, answer, about}); n != 1 {
		t.Errorf("three answers to one probe count as %d", n)
	}
}

func TestTooBigQuotesTheNextSequenceNumber(t *testing.T) {
	for _, to := range []netip.Addr{dst4, dst6} {
		probe := TCPProbe(netip.AddrPortFrom(to, 5432), SYN)
		packet := parsed(t, probe)
		p, err := TooBigProbe(packet.Dst, packet, 1300)
		if err != nil {
			t.Fatal(err)
		}
		p.From = to
		got, ok := parsePacket(p.marshal())
		if !ok || got.Quoted == nil || got.Quoted.Seq != packet.Seq+1 || got.ICMPRest != 1300 || got.Dst != packet.Src {
			t.Errorf("to %s: %s", to, got)
		}
	}
	if _, err := TooBigProbe(dst4, parsed(t, TimestampProbe(dst4)), 1300); err == nil {
		t.Error("a path-MTU message about an ICMP packet was made")
	}
}

// MLD reports have a hop-by-hop header before ICMPv6; taking them for answers would make a silent host talk.
func TestExtensionHeadersAreSkipped(t *testing.T) {
	report, err := hex.DecodeString("6000000000240001" + strings.Repeat("fe80000000000000", 2) + strings.Repeat("ff02000000000000", 2) +
		"3a00050200000100" + "8f00000000000001" + "04000000ff0200000000000000000001ff000010")
	if err != nil {
		t.Fatal(err)
	}
	p, ok := parsePacket(report)
	if !ok || p.Proto != ProtoICMPv6 || p.ICMPType != 143 || !p.neighbour() {
		t.Errorf("MLD report: %s, %v", p, ok)
	}
}

func TestTCPFlagsString(t *testing.T) {
	for f, want := range map[TCPFlags]string{0: "none", SYN | ACK: "SYN|ACK", XMAS: "FIN|PSH|URG"} {
		if f.String() != want {
			t.Errorf("%#x is %s, want %s", uint8(f), f, want)
		}
	}
}

func FuzzParsePacket(f *testing.F) {
	for _, to := range []netip.Addr{dst4, dst6} {
		syn := TCPProbe(netip.AddrPortFrom(to, 5432), SYN)
		syn.From = src4
		if to.Is6() {
			syn.From = src6
		}
		f.Add(syn.marshal())
		quote := ICMPProbe(to, 3, 4, 1300, syn.marshal())
		quote.From = syn.From
		f.Add(quote.marshal())
	}
	f.Add([]byte{})
	f.Add([]byte{0x45})
	f.Fuzz(func(t *testing.T, data []byte) {
		p, ok := parsePacket(data)
		if !ok {
			return
		}
		if !p.Src.IsValid() || !p.Dst.IsValid() || p.Src.Is4() != p.Dst.Is4() || p.Data < 0 {
			t.Errorf("%x gave %+v", data, p)
		}
		if p.Quoted != nil && p.Quoted.Quoted != nil {
			t.Error("a quote in a quote")
		}
		_ = p.String()
		p.Head = data[:min(len(data), headBytes)]
		if probe, err := TooBigProbe(p.Dst, p, 1300); err == nil {
			probe.marshal()
		}
	})
}
