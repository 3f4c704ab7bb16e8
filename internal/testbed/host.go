package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// outputWait bounds how long a command's Wait goes on for children that kept its output open.
const outputWait = 5 * time.Second

// Host is one VM of a bed.
type Host struct {
	bed       *Bed
	name      string
	netnsName string
	dir       string
	netns     *os.File
	netlink   *netlink.Handle
	vm        vm
	addresses []netip.Prefix
}

// Settings that differ from the kernel's defaults or that the machine may have changed (IPv4 ones are copied from it). A
// host behaves like an installation nobody hardened: it accepts redirects and answers everything, so that what does not
// pass was stopped by netfilter. ICMP rate limits are off for the same reason.
var (
	hostSysctls = [][2]string{
		{"ipv4/conf/all/accept_redirects", "1"}, {"ipv4/conf/default/accept_redirects", "1"},
		{"ipv4/conf/all/secure_redirects", "1"}, {"ipv4/conf/all/shared_media", "1"}, {"ipv4/conf/default/shared_media", "1"},
		{"ipv4/conf/all/rp_filter", "0"}, {"ipv4/conf/default/rp_filter", "0"},
		{"ipv4/icmp_echo_ignore_all", "0"}, {"ipv4/icmp_ratemask", "0"},
		{"ipv6/icmp/ratelimit", "0"}, {"ipv6/icmp/ratemask", "0"},
		{"ipv6/conf/default/accept_redirects", "1"},
		{"ipv6/conf/default/accept_ra", "0"},
		{"ipv6/conf/default/accept_dad", "0"}, {"ipv6/conf/default/dad_transmits", "0"},
		{"ipv6/conf/default/addr_gen_mode", "0"},
	}
	routerSysctls = [][2]string{
		{"ipv4/ip_forward", "1"}, {"ipv4/conf/all/send_redirects", "0"}, {"ipv4/conf/default/send_redirects", "0"},
		{"ipv4/conf/all/rp_filter", "0"}, {"ipv4/conf/default/rp_filter", "0"}, {"ipv4/icmp_ratemask", "0"},
		{"ipv6/conf/all/forwarding", "1"}, {"ipv6/icmp/ratelimit", "0"}, {"ipv6/icmp/ratemask", "0"},
		{"ipv6/conf/default/accept_dad", "0"}, {"ipv6/conf/default/dad_transmits", "0"},
	}
)

// newHost makes the namespaces of a host, with lo up and no other link.
func (b *Bed) newHost(ctx context.Context, name string) (*Host, error) {
	h := &Host{bed: b, name: name, netnsName: b.run.netnsName(b.name, name), dir: filepath.Join(b.dir, name)}
	var err error
	if h.netns, err = addNetns(ctx, h.netnsName); err != nil {
		return nil, err
	}
	fail := func(err error) (*Host, error) {
		return nil, errors.Join(err, h.close(), removeNamespaces(ctx, netnsDir, []string{h.netnsName}))
	}
	if h.vm, err = newVM(h.netns, name, h.dir); err != nil {
		return fail(err)
	}
	err = h.Do(func() error {
		h.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fail(fmt.Errorf("cannot open netlink: %w", err))
	}
	lo, err := h.netlink.LinkByName("lo")
	if err == nil {
		err = h.netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fail(fmt.Errorf("cannot set lo up: %w", err))
	}
	return h, nil
}

func (h *Host) close() error {
	if h.netlink != nil {
		h.netlink.Close()
	}
	return errors.Join(h.vm.Close(), h.netns.Close())
}

// sysctls writes below /proc/sys/net, which shows the namespace of the thread that opens it.
func (h *Host) sysctls(list [][2]string) error {
	return h.Do(func() error {
		for _, s := range list {
			if err := os.WriteFile("/proc/sys/net/"+s[0], []byte(s[1]), 0); err != nil {
				return fmt.Errorf("cannot set a sysctl of %s: %w", h.name, err)
			}
		}
		return nil
	})
}

// Name returns the host's name.
func (h *Host) Name() string { return h.name }

// Netns returns the name of the network namespace, for ip netns exec.
func (h *Host) Netns() string { return h.netnsName }

// RunDir returns where the host's /run is seen from outside.
func (h *Host) RunDir() string { return filepath.Join(h.dir, "run") }

// Addresses returns the host's addresses in the order they were given.
func (h *Host) Addresses() []netip.Addr {
	list := make([]netip.Addr, 0, len(h.addresses))
	for _, p := range h.addresses {
		list = append(list, p.Addr())
	}
	return list
}

// V4 returns the first IPv4 address, the zero Addr if there is none.
func (h *Host) V4() netip.Addr { return h.first(false) }

// V6 returns the first IPv6 address, the zero Addr if there is none.
func (h *Host) V6() netip.Addr { return h.first(true) }

func (h *Host) first(v6 bool) netip.Addr {
	for _, p := range h.addresses {
		if p.Addr().Is6() == v6 {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

func (h *Host) hasFamily(v6 bool) bool { return h.first(v6).IsValid() }

// source returns the address the host talks to another one from: one in the same subnet, else the first of the family.
func (h *Host) source(to netip.Addr) netip.Addr {
	for _, p := range h.addresses {
		if p.Contains(to) {
			return p.Addr()
		}
	}
	return h.first(to.Is6())
}

// Do runs f inside the host's network namespace, on an OS thread of its own that ends with it. Sockets that f opens stay in
// the namespace. f must not start goroutines that rely on the namespace.
func (h *Host) Do(f func() error) error {
	return onThrowawayThread(func() error {
		if err := unix.Setns(int(h.netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("cannot enter host %s: %w", h.name, err)
		}
		return f()
	})
}

// Command prepares a command inside the host, as root. The process that Start makes is the command itself: its pid is the
// command's, and Kill hits it. The environment is PATH, HOME and LANG, not the caller's; append to Env. The working
// directory is /, whatever Dir says. The command is killed when ctx is done.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	ns := func(kind string, f *os.File) string {
		return fmt.Sprintf("--%s=/proc/%d/fd/%d", kind, os.Getpid(), f.Fd())
	}
	argv := []string{ns("net", h.netns), ns("mount", h.vm.mnt), ns("ipc", h.vm.ipc), ns("uts", h.vm.uts), "--wdns=/", "--", name}
	cmd := exec.CommandContext(ctx, "nsenter", append(argv, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	for _, pass := range []string{"GORACE", "GOCOVERDIR"} { // what concerns a program under test built like the test
		if v, ok := os.LookupEnv(pass); ok {
			cmd.Env = append(cmd.Env, pass+"="+v)
		}
	}
	cmd.WaitDelay = outputWait
	return cmd
}

// CommandAs is Command as another user, with that user's groups and no capabilities.
func (h *Host) CommandAs(ctx context.Context, u *user.User, name string, args ...string) *exec.Cmd {
	argv := []string{"--reuid=" + u.Uid, "--regid=" + u.Gid, "--init-groups", "--inh-caps=-all", "--", name}
	cmd := h.Command(ctx, "setpriv", append(argv, args...)...)
	cmd.Env = append(cmd.Env, "HOME="+u.HomeDir, "USER="+u.Username)
	return cmd
}

// Run runs a command as root and returns its output; an error tells what it wrote to stderr.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	return output(h.Command(ctx, name, args...))
}

// output runs a prepared command for its standard output.
func output(cmd *exec.Cmd) (string, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("cannot run %s: %w: %s", strings.Join(visible(cmd.Args), " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// visible returns the part of a command line that the caller asked for: what follows the last "--" of the wrappers.
func visible(args []string) []string {
	for i := 0; i < 2; i++ {
		if args[0] != "nsenter" && args[0] != "setpriv" {
			break
		}
		for j, a := range args {
			if a == "--" {
				args = args[j+1:]
				break
			}
		}
	}
	return args
}

// Route returns how the host reaches an address at this moment: the gateway (the zero Addr if on-link) and the path MTU in
// bytes, with what redirects and path-MTU messages have changed.
func (h *Host) Route(to netip.Addr) (gateway netip.Addr, mtu int, err error) {
	routes, err := h.netlink.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 {
		return netip.Addr{}, 0, fmt.Errorf("cannot ask %s for its route to %s: %w", h.name, to, err)
	}
	r := routes[0]
	if gw, ok := netip.AddrFromSlice(r.Gw); ok {
		gateway = gw.Unmap()
	}
	mtu = r.MTU
	if mtu == 0 {
		link, err := h.netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			return netip.Addr{}, 0, fmt.Errorf("cannot ask %s for a link: %w", h.name, err)
		}
		mtu = link.Attrs().MTU
	}
	return gateway, mtu, nil
}

// LinkLocal returns the IPv6 link-local address of the host's interface, with its zone.
func (h *Host) LinkLocal() (netip.Addr, error) {
	nic, err := h.netlink.LinkByName(nicName)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("cannot find the interface of %s: %w", h.name, err)
	}
	list, err := h.netlink.AddrList(nic, netlink.FAMILY_V6)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("cannot list the addresses of %s: %w", h.name, err)
	}
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.IsLinkLocalUnicast() {
			return ip.WithZone(nicName), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("cannot find a link-local address of %s", h.name)
}

// Processes lists the processes inside the host.
func (h *Host) Processes() ([]int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(h.netns.Fd()), &st); err != nil {
		return nil, fmt.Errorf("cannot inspect host %s: %w", h.name, err)
	}
	return processesIn(map[uint64]bool{st.Ino: true})
}
