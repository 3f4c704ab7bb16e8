package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// pingWait is how long Ping waits for the next reply.
const pingWait = 500 * time.Millisecond

// Echo is what became of echo requests, as a program on the sending host sees it: replies have passed its netfilter.
type Echo struct {
	Sent    int
	Denied  int // refused by the sender's own kernel
	Replies int // different ones
}

// Ping sends n echo requests as fast as the kernel takes them, and counts the replies until all have come, or none for half
// a second. n is at most 65536; with a large n it is a flood.
func (h *Host) Ping(ctx context.Context, to netip.Addr, n int) (Echo, error) {
	if n < 1 || n > 1<<16 {
		return Echo{}, fmt.Errorf("cannot ping %d times: 1 to 65536 are possible", n)
	}
	var conn *net.IPConn
	err := h.Do(func() error {
		var err error
		conn, err = icmpSocket(to)
		return err
	})
	if err != nil {
		return Echo{}, fmt.Errorf("cannot ping %s from %s: %w", to, h.name, err)
	}
	end := func() { _ = conn.Close() } // more than once, perhaps
	defer end()
	stop := context.AfterFunc(ctx, end)
	defer stop()
	id := int(sourcePort())
	replies := make(chan int, 1)
	sent := make(chan struct{})
	go func() { replies <- countReplies(conn, to, id, n, sent) }()
	e, err := sendEchoes(conn, to, id, n)
	close(sent)
	if e.Sent == 0 {
		end()
	}
	e.Replies = <-replies
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return e, fmt.Errorf("cannot ping %s from %s: %w", to, h.name, err)
	}
	return e, nil
}

// icmpSocket opens a raw ICMP socket, which sees what has passed netfilter.
func icmpSocket(to netip.Addr) (*net.IPConn, error) {
	network, local := "ip4:icmp", net.IPv4zero
	if to.Is6() {
		network, local = "ip6:ipv6-icmp", net.IPv6zero
	}
	conn, err := net.ListenIP(network, &net.IPAddr{IP: local})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var optErr error
		err = raw.Control(func(fd uintptr) {
			optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
		})
		err = errors.Join(err, optErr)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func sendEchoes(conn *net.IPConn, to netip.Addr, id, n int) (Echo, error) {
	var e Echo
	m := icmp.Message{Type: ipv4.ICMPTypeEcho}
	if to.Is6() {
		m.Type = ipv6.ICMPTypeEchoRequest
	}
	for seq := range n {
		m.Body = &icmp.Echo{ID: id, Seq: seq, Data: make([]byte, 32)}
		b, err := m.Marshal(nil) // the kernel fills in ICMPv6's checksum
		if err != nil {
			return e, err
		}
		_, err = conn.WriteTo(b, &net.IPAddr{IP: to.AsSlice(), Zone: to.Zone()})
		switch {
		case err == nil:
			e.Sent++
		case isDenied(err), isUnreachable(err):
			e.Denied++
		default:
			return e, err
		}
	}
	return e, nil
}

// countReplies counts different replies of the peer with the id, until all have come or, after the last request was sent,
// none for pingWait.
func countReplies(conn *net.IPConn, to netip.Addr, id, n int, sent <-chan struct{}) int {
	seen := map[int]bool{}
	buf := make([]byte, 2048)
	deadline := time.Now().Add(pingWait)
	for len(seen) < n {
		if err := conn.SetReadDeadline(deadline); err != nil {
			return len(seen)
		}
		size, from, err := conn.ReadFromIP(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			select {
			case <-sent:
				return len(seen)
			default:
				deadline = time.Now().Add(pingWait)
				continue
			}
		}
		if err != nil {
			return len(seen)
		}
		if seq, ok := replySeq(buf[:size], id, to.Is6()); ok && from.IP.Equal(to.AsSlice()) {
			seen[seq] = true
			deadline = time.Now().Add(pingWait) // not for other messages: a stranger's flood must not prolong it
		}
	}
	return len(seen)
}

// replySeq returns the sequence number of an echo reply with the id.
func replySeq(b []byte, id int, v6 bool) (int, bool) {
	proto, reply := ProtoICMP, icmp.Type(ipv4.ICMPTypeEchoReply)
	if v6 {
		proto, reply = ProtoICMPv6, ipv6.ICMPTypeEchoReply
	}
	m, err := icmp.ParseMessage(proto, b)
	if err != nil || m.Type != reply {
		return 0, false
	}
	echo, ok := m.Body.(*icmp.Echo)
	if !ok || echo.ID != id {
		return 0, false
	}
	return echo.Seq, true
}
