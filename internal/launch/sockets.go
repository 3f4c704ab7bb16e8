package launch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Ports are those of a node that the flow matrix lets others connect to.
type Ports struct {
	TCP, UDP []uint16
	// Own are those of TCP that are the service's, so that nothing else is to
	// listen there.
	Own []uint16
}

// socketTable is what the kernel lists of the sockets of a network namespace.
type socketTable struct {
	listening []listener
	known     map[uint64]bool // inodes of all that are in the lists
	ephemeral [2]uint16       // ports that the kernel gives to clients
}

// listener is a socket that something may come in by.
type listener struct {
	proto string         // tcp, udp or unix
	at    netip.AddrPort // not of unix
	name  string         // of unix: an abstract name
	inode uint64         // 0 if the kernel holds it for another socket
	uid   uint64         // who made it
}

// States of sockets in /proc/net/tcp and udp, include/net/tcp_states.h.
const (
	stateListen = 10
	stateClose  = 7 // of UDP: not connected
)

// readSockets reads the lists of the network namespace that a process is in.
// They are read from procfs, which needs no entering of the namespace.
func readSockets(ctx context.Context, pid int) (socketTable, error) {
	t := socketTable{known: map[uint64]bool{}}
	fs, err := procfs.NewFS("/proc/" + strconv.Itoa(pid))
	if err != nil {
		return t, err
	}
	for _, list := range []struct {
		proto string
		state uint64
		read  func() (procfs.NetIPSocket, error)
	}{
		{"tcp", stateListen, func() (procfs.NetIPSocket, error) { s, err := fs.NetTCP(); return procfs.NetIPSocket(s), err }},  //nolint:staticcheck // netlink would have to enter the namespace
		{"tcp", stateListen, func() (procfs.NetIPSocket, error) { s, err := fs.NetTCP6(); return procfs.NetIPSocket(s), err }}, //nolint:staticcheck // the same
		{"udp", stateClose, func() (procfs.NetIPSocket, error) { s, err := fs.NetUDP(); return procfs.NetIPSocket(s), err }},
		{"udp", stateClose, func() (procfs.NetIPSocket, error) { s, err := fs.NetUDP6(); return procfs.NetIPSocket(s), err }},
	} {
		if err := ctx.Err(); err != nil {
			return t, err
		}
		sockets, err := list.read()
		if errors.Is(err, os.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return t, err
		}
		for _, s := range sockets {
			t.known[s.Inode] = true
			if addr, ok := netip.AddrFromSlice(s.LocalAddr); ok && s.St == list.state {
				t.listening = append(t.listening, listener{proto: list.proto, at: netip.AddrPortFrom(addr.Unmap(), uint16(s.LocalPort)), inode: s.Inode, uid: s.UID})
			}
		}
	}
	if err := t.readUnix(pid); err != nil {
		return t, err
	}
	return t, t.readEphemeral(pid)
}

// readUnix reads /proc/net/unix, unix(7). Names are their makers' choice and may
// hold line breaks, so that a line may not be one: it is passed over then, and
// the real ones stay.
func (t *socketTable) readUnix(pid int) error {
	file, err := os.Open(procPath(pid, "net/unix"))
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // nothing was written
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if l, ok := parseUnix(lines.Text()); ok {
			t.known[l.inode] = true
			if l.proto != "" {
				t.listening = append(t.listening, l)
			}
		}
	}
	return lines.Err()
}

// parseUnix reads "Num: RefCount Protocol Flags Type St Inode Path". The proto of
// what does not listen by an abstract name is empty.
func parseUnix(line string) (listener, bool) {
	const acceptsConnections = 1 << 16 // __SO_ACCEPTCON, include/linux/net.h
	fields := strings.SplitN(strings.Join(strings.Fields(line), " "), " ", 8)
	if len(fields) < 7 || !strings.HasSuffix(fields[0], ":") {
		return listener{}, false
	}
	flags, flagErr := strconv.ParseUint(fields[3], 16, 32)
	inode, inodeErr := strconv.ParseUint(fields[6], 10, 64)
	if flagErr != nil || inodeErr != nil {
		return listener{}, false
	}
	l := listener{inode: inode}
	if flags&acceptsConnections != 0 && len(fields) == 8 && strings.HasPrefix(fields[7], "@") {
		l.proto, l.name = "unix", fields[7]
	}
	return l, true
}

func (t *socketTable) readEphemeral(pid int) error {
	// In the network namespace of the reader, which is the one that matters.
	data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	if _, err := fmt.Sscan(string(data), &t.ephemeral[0], &t.ephemeral[1]); err != nil {
		return fmt.Errorf("/proc/sys/net/ipv4/ip_local_port_range is %q: %w", data, err)
	}
	return nil
}

func (l listener) String() string {
	if l.proto == "unix" {
		return "unix " + shown(l.name)
	}
	return l.proto + " " + l.at.String()
}

// allowed says whether a service may listen there. Loopback reaches nobody else.
// A client's UDP socket that is not connected looks like a server's: those on
// ports that the kernel gives to clients pass. No flow is about abstract names,
// which have no owner and no mode.
func (t socketTable) allowed(l listener, ports Ports) bool {
	switch {
	case l.proto == "unix":
		return false
	case l.at.Addr().IsLoopback():
		return true
	case l.proto == "tcp":
		return slices.Contains(ports.TCP, l.at.Port())
	}
	return slices.Contains(ports.UDP, l.at.Port()) || l.at.Port() >= t.ephemeral[0] && l.at.Port() <= t.ephemeral[1]
}

// byHolder are the TCP ports that processes of a namespace listen on, loopback aside.
func (t socketTable) byHolder(all map[int]look, netns string) map[int][]uint16 {
	ports := map[uint64]uint16{}
	for _, l := range t.listening {
		if l.proto == "tcp" && l.inode != 0 && !l.at.Addr().IsLoopback() {
			ports[l.inode] = l.at.Port()
		}
	}
	out := map[int][]uint16{}
	for pid, l := range all {
		for _, inode := range l.sockets {
			if port, ok := ports[inode]; ok && l.netns == netns {
				out[pid] = append(out[pid], port)
			}
		}
	}
	return out
}

// checkListening compares what a process listens on with what the matrix lets in.
func checkListening(pid int, l look, t socketTable, ports Ports, raw bool) (Finding, []string) {
	var list, faults []string
	for _, s := range t.listening {
		if s.inode == 0 || !slices.Contains(l.sockets, s.inode) {
			continue
		}
		list = append(list, s.String())
		if !t.allowed(s, ports) {
			faults = append(faults, s.String())
		}
	}
	for _, inode := range l.sockets {
		if kind := oddSocket(pid, inode, t); kind != "" && (!raw || !slices.Contains(rawKinds, kind)) {
			faults = append(faults, kind+" socket")
			list = append(list, kind+" socket")
		}
	}
	f := Finding{PID: pid, Layer: LayerNetfilter, Check: "listens", Want: "loopback, or ports of its flows", Got: "nothing", OK: len(faults) == 0}
	if len(list) > 0 {
		f.Got = strings.Join(slices.Compact(slices.Sorted(slices.Values(list))), ", ")
	}
	if !f.OK {
		f.Got = "no flow lets in: " + strings.Join(slices.Compact(slices.Sorted(slices.Values(faults))), ", ")
	}
	return f, list
}

// ordinary are the kinds of sockets, as their protocol calls itself, that receive
// nothing without being in one of the lists or in a reply.
var ordinary = []string{"TCP", "TCPv6", "UDP", "UDPv6", "UNIX", "UNIX-STREAM", "UNIX-DGRAM", "NETLINK", "MPTCP", "MPTCPv6", "PING", "PINGv6"}

// rawKinds are those that CAP_NET_RAW is for.
var rawKinds = []string{"RAW", "RAWv6", "PACKET"}

// oddSocket is the protocol of a socket that is in none of the lists, and which
// a service has no use for; "" for all others. The kernel tells it as an
// attribute of the file, Linux 3.7 (sockfs_xattr_get in net/socket.c).
func oddSocket(pid int, inode uint64, t socketTable) string {
	if t.known[inode] {
		return ""
	}
	names, err := readNames(procPath(pid, "fd"))
	if err != nil {
		return ""
	}
	want := fmt.Sprintf("socket:[%d]", inode)
	for _, name := range names {
		path := procPath(pid, "fd/"+name)
		if link, err := os.Readlink(path); err != nil || link != want {
			continue
		}
		var kind [64]byte
		n, err := unix.Getxattr(path, "system.sockprotoname", kind[:])
		if err != nil {
			return ""
		}
		text := strings.TrimRight(string(kind[:n]), "\x00")
		if slices.Contains(ordinary, text) {
			return ""
		}
		return text
	}
	return ""
}

// unheld are sockets that the service's user made in our network namespace, which
// listen where no flow lets anybody in, and which no process has as a file.
// Multipath TCP has such, held by the socket that the process has.
func (t socketTable) unheld(all map[int]look, uid uint32, ports Ports) []string {
	held := map[uint64]bool{}
	for _, l := range all {
		for _, inode := range l.sockets {
			held[inode] = true
		}
	}
	var out []string
	for _, l := range t.listening {
		if l.proto != "unix" && l.uid == uint64(uid) && !held[l.inode] && !t.allowed(l, ports) {
			out = append(out, l.String())
		}
	}
	return out
}
