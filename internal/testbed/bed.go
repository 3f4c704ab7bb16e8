package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// readyWait bounds how long New waits for the links.
const readyWait = 10 * time.Second

// Bed is a network of hosts. Close it.
type Bed struct {
	name    string
	run     *run
	dir     string // the bed's files, below the run's
	subnets []netip.Prefix
	router  *Host
	hosts   []*Host

	done      chan struct{} // closed with the bed
	closeOnce sync.Once
	closeErr  error
}

// New builds a bed; its hosts reach each other and the router when it returns. The bed is closed when ctx is done.
// The name follows the rules of a host's and is unique among the open beds of the process.
func New(ctx context.Context, name string, hosts []HostSpec) (*Bed, error) {
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("cannot make test bed %q: the name must match %s", name, nameForm)
	}
	p, err := planHosts(hosts)
	if err != nil {
		return nil, err
	}
	r, err := current()
	if err != nil {
		return nil, err
	}
	b := &Bed{name: name, run: r, dir: filepath.Join(r.dir(), name), subnets: p.subnets(), done: make(chan struct{})}
	if err := r.register(b); err != nil {
		return nil, fmt.Errorf("cannot make test bed %s: %w", name, err)
	}
	if err := b.build(ctx, p); err != nil {
		return nil, fmt.Errorf("cannot make test bed %s: %w", name, errors.Join(err, b.Close())) //nolint:contextcheck // removes even if ctx is done
	}
	// A caller that wants the error calls Close, too, and gets the same.
	context.AfterFunc(ctx, func() { _ = b.Close() }) //nolint:contextcheck // ctx is done by then
	return b, nil
}

// Host returns a host by name; nil if there is none.
func (b *Bed) Host(name string) *Host {
	for _, h := range b.hosts {
		if h.name == name {
			return h
		}
	}
	return nil
}

// Router returns the switch namespace, which routes between the subnets. It can be used as a host: to send what a router
// sends, and to watch what passes.
func (b *Bed) Router() *Host { return b.router }

// Subnets lists the bed's subnets.
func (b *Bed) Subnets() []netip.Prefix { return b.subnets }

// owner returns the host that has the address; nil if none has.
func (b *Bed) owner(a netip.Addr) *Host {
	for _, h := range append([]*Host{b.router}, b.hosts...) {
		for _, p := range h.addresses {
			if p.Addr() == a.WithZone("") {
				return h
			}
		}
	}
	return nil
}

// Close kills everything that runs in the bed and removes it. It may be called more than once.
func (b *Bed) Close() error {
	b.closeOnce.Do(func() {
		close(b.done)
		all := b.hosts
		if b.router != nil {
			all = append(all, b.router)
		}
		var names []string
		var errs []error
		for _, h := range all {
			names = append(names, h.netnsName)
			errs = append(errs, h.close())
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*killWait)
		defer cancel()
		errs = append(errs, removeNamespaces(ctx, netnsDir, names), os.RemoveAll(b.dir))
		b.run.forget(b)
		b.closeErr = errors.Join(errs...)
	})
	return b.closeErr
}

func (b *Bed) build(ctx context.Context, p plan) error {
	if err := makeDir(b.dir); err != nil {
		return err
	}
	var err error
	if b.router, err = b.newHost(ctx, "switch"); err != nil {
		return err
	}
	if err := b.router.sysctls(routerSysctls); err != nil {
		return err
	}
	for i, s := range p.segments {
		if err := b.addBridge(bridgeName(i), s); err != nil {
			return fmt.Errorf("cannot make bridge %s: %w", bridgeName(i), err)
		}
	}
	for i, ph := range p.hosts {
		if err := b.addHost(ctx, ph, p.segments[ph.segment], fmt.Sprintf("port%d", i)); err != nil {
			return fmt.Errorf("cannot make host %s: %w", ph.name, err)
		}
	}
	return b.awaitLinks(ctx)
}

func bridgeName(i int) string { return fmt.Sprintf("br%d", i) }

// addBridge makes the bridge of one segment with the router's addresses on it.
func (b *Bed) addBridge(name string, s segment) error {
	off := false
	nl := b.router.netlink
	// Snooping would lose neighbour solicitations until a querier has been heard.
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}, MulticastSnooping: &off}
	if err := nl.LinkAdd(br); err != nil {
		return err
	}
	if err := nl.LinkSetMTU(br, s.mtu); err != nil { // set, so that it does not follow the ports'
		return err
	}
	if err := nl.LinkSetUp(br); err != nil {
		return err
	}
	addresses := append([]netip.Prefix{netip.PrefixFrom(routerLinkLocal, 64)}, s.router...)
	if err := addAddresses(nl, br, addresses); err != nil {
		return err
	}
	b.router.addresses = append(b.router.addresses, s.router...)
	return nil
}

// addHost makes one host and plugs it into its segment's bridge.
func (b *Bed) addHost(ctx context.Context, ph plannedHost, s segment, port string) error {
	h, err := b.newHost(ctx, ph.name)
	if err != nil {
		return err
	}
	b.hosts = append(b.hosts, h)
	if err := h.sysctls(hostSysctls); err != nil {
		return err
	}
	// Both ends are made inside the bed's namespaces at once: the machine's own never has either.
	nl := b.router.netlink
	bridge, err := nl.LinkByName(bridgeName(ph.segment))
	if err != nil {
		return err
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: port, MasterIndex: bridge.Attrs().Index},
		PeerName:  nicName, PeerNamespace: netlink.NsFd(int(h.netns.Fd())),
	}
	if err := nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("cannot make the link: %w", err)
	}
	if err := nl.LinkSetUp(veth); err != nil {
		return err
	}
	nic, err := h.netlink.LinkByName(nicName)
	if err != nil {
		return err
	}
	if err := h.netlink.LinkSetUp(nic); err != nil {
		return err
	}
	h.addresses = ph.addresses
	if err := addAddresses(h.netlink, nic, ph.addresses); err != nil {
		return err
	}
	return addDefaultRoutes(h, nic, s)
}

// addAddresses adds without duplicate address detection: an address is usable at once.
func addAddresses(nl *netlink.Handle, link netlink.Link, addresses []netip.Prefix) error {
	for _, p := range addresses {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := nl.AddrAdd(link, a); err != nil {
			return fmt.Errorf("cannot add address %s: %w", p, err)
		}
	}
	return nil
}

func addDefaultRoutes(h *Host, nic netlink.Link, s segment) error {
	done := map[bool]bool{}
	for _, r := range s.router {
		v6 := r.Addr().Is6()
		if done[v6] || !h.hasFamily(v6) {
			continue
		}
		done[v6] = true
		gw := r.Addr()
		if v6 {
			gw = routerLinkLocal
		}
		route := &netlink.Route{LinkIndex: nic.Attrs().Index, Gw: gw.AsSlice()}
		if err := h.netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("cannot add the default route by %s: %w", gw, err)
		}
	}
	return nil
}

// awaitLinks returns when every host has had an echo from the router in each of its families.
func (b *Bed) awaitLinks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	for _, h := range b.hosts {
		for _, p := range h.addresses {
			to := routerPrefix(p).Addr()
			err := Await(ctx, fmt.Sprintf("the link of %s to %s", h.name, to), func(ctx context.Context) error {
				e, err := h.Ping(ctx, to, 1)
				if err == nil && e.Replies == 0 {
					err = errors.New("no echo from the router")
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
