package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/firewall"
)

// The addresses of the drill's network. It has no way out, so they are anybody's.
var (
	// Node are those of the service's side.
	Node = []netip.Prefix{netip.MustParsePrefix("10.20.1.10/24"), netip.MustParsePrefix("fd00:20:1::10/64")}
	// Sibling are those of another tenant.
	Sibling = []netip.Prefix{netip.MustParsePrefix("10.20.1.66/24"), netip.MustParsePrefix("fd00:20:1::66/64")}
	// Metadata are those of the cloud's metadata service.
	Metadata = []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("fd00:ec2::254/128")}
)

// patience is how long an answer from the network may take.
const patience = time.Second

// Ports on which the outside answers.
const (
	portSSH      = 22
	portDNS      = 53
	portHTTP     = 80
	portPostgres = 5432
	portShell    = 4444
)

// serverPort is that of the scratch cluster: a port of the flow matrix.
const serverPort = portPostgres

// outside is the other end of the drill's network: another tenant, the metadata
// service.
type outside struct {
	netns     *os.File
	listeners []io.Closer
	serving   sync.WaitGroup

	mu    sync.Mutex
	heard strings.Builder
}

// makeNetwork makes the second network namespace and joins the two.
func (b *box) makeNetwork(ctx context.Context) error {
	b.outside = &outside{}
	if err := onOtherThread(func() error { return b.outside.open(ctx) }); err != nil {
		b.outside.close()
		return fmt.Errorf("cannot make the drill's network: %w", err)
	}
	if err := b.makeNode(); err != nil {
		return fmt.Errorf("cannot make the drill's network: %w", err)
	}
	if err := onOtherThread(func() error { return b.outside.serve(ctx) }); err != nil {
		return fmt.Errorf("cannot serve in the drill's network: %w", err)
	}
	return nil
}

// onOtherThread runs f on a thread that ends with it, since it changes the
// thread's namespace.
func onOtherThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and no unlock: the thread ends
		done <- f()
	}()
	return <-done
}

func (o *outside) open(context.Context) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	var err error
	o.netns, err = os.Open("/proc/thread-self/ns/net")
	return err
}

// linkName is the interface's name on both sides.
const linkName = "drill"

// makeNode makes the link and the service's side of it.
func (b *box) makeNode() error {
	const fewRetries = "/proc/sys/net/ipv4/tcp_syn_retries" // who is dropped gives up after 3 s, not 127
	if err := os.WriteFile(fewRetries, []byte("1"), 0); err != nil {
		return err
	}
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: linkName}, PeerName: linkName, PeerNamespace: netlink.NsFd(int(b.outside.netns.Fd()))}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("cannot make a veth pair: %w", err)
	}
	here, err := up(Node)
	if err != nil {
		return err
	}
	for _, to := range Metadata {
		route := &netlink.Route{LinkIndex: here.Attrs().Index, Dst: network(to), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("cannot add the route to %s: %w", to, err)
		}
	}
	return nil
}

func network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// up brings the interfaces of the calling thread's namespace up, with addresses
// that can be used at once.
func up(addresses ...[]netip.Prefix) (netlink.Link, error) {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot bring up lo: %w", err)
	}
	link, err := netlink.LinkByName(linkName)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot bring up the link: %w", err)
	}
	for _, list := range addresses {
		for _, p := range list {
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: network(p), Flags: unix.IFA_F_NODAD}); err != nil {
				return nil, fmt.Errorf("cannot add the address %s: %w", p, err)
			}
		}
	}
	return link, nil
}

// serve answers on the outside's ports. The sockets stay in its namespace.
func (o *outside) serve(ctx context.Context) error {
	if err := unix.Setns(int(o.netns.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	if _, err := up(Sibling, Metadata); err != nil {
		return err
	}
	var lc net.ListenConfig
	for _, list := range [][]netip.Prefix{Sibling, Metadata} {
		for _, p := range list {
			for _, port := range []uint16{portSSH, portHTTP, portPostgres, portShell} {
				l, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(p.Addr(), port).String())
				if err != nil {
					return err
				}
				o.listeners = append(o.listeners, l)
				o.serving.Go(func() { o.accept(l) })
			}
			c, err := lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(p.Addr(), portDNS).String())
			if err != nil {
				return err
			}
			o.listeners = append(o.listeners, c)
			o.serving.Go(func() { echo(c) })
		}
	}
	return nil
}

// mostHeard is enough to know a caller by.
const mostHeard = 4096

func (o *outside) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		o.serving.Go(func() {
			defer conn.Close()
			if conn.SetDeadline(time.Now().Add(patience)) != nil {
				return
			}
			said, _ := io.ReadAll(io.LimitReader(conn, mostHeard)) // what came counts, however it ended
			o.mu.Lock()
			defer o.mu.Unlock()
			o.heard.Write(said)
		})
	}
}

func echo(c net.PacketConn) {
	buf := make([]byte, 64)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(buf[:n], from) // who does not get it is told apart by that
	}
}

// hears waits until somebody outside was told a word.
func (o *outside) hears(ctx context.Context, word string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	for {
		o.mu.Lock()
		found := strings.Contains(o.heard.String(), word)
		o.mu.Unlock()
		if found {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// dial connects from the outside.
func (o *outside) dial(ctx context.Context, to netip.AddrPort) error {
	return onOtherThread(func() error {
		if err := unix.Setns(int(o.netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

func (o *outside) close() {
	if o == nil {
		return
	}
	for _, l := range o.listeners {
		_ = l.Close() // it ends with this process anyway
	}
	o.serving.Wait()
	if o.netns != nil {
		o.netns.Close()
	}
}

// openRules finds the tools; rules are written when they are needed.
func (b *box) openRules(ctx context.Context) (err error) {
	b.fw, err = firewall.Open(ctx, b.Backend)
	return err
}

// setRules puts the rules in force in the drill's network, or takes them away.
func (b *box) setRules(ctx context.Context, on bool) error {
	if on == b.rulesOn {
		return nil
	}
	b.rulesOn = on
	if !on {
		_, err := firewall.Teardown(ctx)
		return err
	}
	got, err := b.fw.Observe(ctx)
	if err != nil {
		return err
	}
	if err := b.fw.Apply(ctx, firewall.Diff(b.Rules, got)); err != nil {
		return err
	}
	if got, err = b.fw.Observe(ctx); err != nil {
		return err
	}
	if left := firewall.Diff(b.Rules, got); !left.Empty() {
		return errors.New("the rules of the drill are not as they were written:\n" + left.String())
	}
	return nil
}
