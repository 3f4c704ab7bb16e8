package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const probeTimeout = 2 * time.Second

// sslRequest is the packet a client may send first: its length and the code
// 80877103, both big-endian. A server answers with the one byte S or N without
// logging anything, whatever its settings. (PostgreSQL, message formats.)
var sslRequest = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}

// postmasterReady returns nil when the postmaster pid says in postmaster.pid that
// it is up and a server answers where the file says.
func postmasterReady(ctx context.Context, dataDir string, pid int) error {
	pf, err := readPIDFile(ctx, dataDir)
	if err != nil {
		return err
	}
	switch {
	case pf.pid != pid || pf.single:
		return fmt.Errorf("postmaster.pid names pid %d, not %d", pf.pid, pid)
	case !pf.accepting():
		return fmt.Errorf("postmaster.pid says %q", pf.status)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := dialPostmaster(ctx, pf)
	if err != nil {
		return fmt.Errorf("it says %s but cannot be reached: %w", pf.status, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	return exchange(conn)
}

func exchange(conn net.Conn) error {
	if _, err := conn.Write(sslRequest); err != nil {
		return fmt.Errorf("it accepts no request: %w", err)
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return fmt.Errorf("it does not answer: %w", err)
	}
	if answer[0] != 'S' && answer[0] != 'N' {
		return fmt.Errorf("it answers %q, which is no postgres", answer[0])
	}
	return nil
}

// dialPostmaster connects to where postmaster.pid says, which the service's user
// may have written: hence only to a Unix socket on which that very process
// listens, or to an address of this machine.
func dialPostmaster(ctx context.Context, pf pidFile) (net.Conn, error) {
	var dialer net.Dialer
	if pf.socketDir != "" {
		path := filepath.Join(pf.socketDir, ".s.PGSQL."+strconv.Itoa(pf.port))
		conn, err := dialer.DialContext(ctx, "unix", path)
		if errors.Is(err, os.ErrNotExist) { // a daemon with a /tmp of its own does not see the server's
			conn, err = dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/%d/root%s", pf.pid, path))
		}
		if err != nil {
			return nil, err
		}
		if err := peerIs(conn, pf.pid); err != nil {
			conn.Close()
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return conn, nil
	}
	addrs, err := localAddrs(ctx, pf.host)
	if err != nil {
		return nil, err
	}
	for _, addr := range addrs {
		conn, dialErr := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, uint16(pf.port)).String())
		if dialErr == nil {
			return conn, nil
		}
		err = errors.Join(err, dialErr)
	}
	return nil, err
}

// peerIs checks who listens on a Unix socket: SO_PEERCRED of a connecting socket
// is who called listen(2), see unix(7).
func peerIs(conn net.Conn, pid int) error {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("it is no Unix socket")
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if int(cred.Pid) != pid {
		return fmt.Errorf("pid %d listens there, not pid %d", cred.Pid, pid)
	}
	return nil
}

// localAddrs resolves a listen address to addresses of this machine.
func localAddrs(ctx context.Context, host string) ([]netip.Addr, error) {
	v4, v6 := netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()
	switch host {
	case "":
		return nil, errors.New("it has neither a Unix nor a TCP socket; set unix_socket_directories")
	case "*", "localhost":
		return []netip.Addr{v4, v6}, nil
	case "0.0.0.0":
		return []netip.Addr{v4}, nil
	case "::":
		return []netip.Addr{v6}, nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host) // a literal is not looked up
	if err != nil {
		return nil, err
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("cannot list this machine's addresses: %w", err)
	}
	var local []netip.Addr
	for _, addr := range addrs {
		if addr = addr.Unmap(); addr.IsLoopback() || isOwn(addr, own) {
			local = append(local, addr)
		}
	}
	if len(local) == 0 {
		return nil, fmt.Errorf("its listen address %q is not one of this machine", host)
	}
	return local, nil
}

func isOwn(addr netip.Addr, own []net.Addr) bool {
	for _, o := range own {
		if prefix, err := netip.ParsePrefix(o.String()); err == nil && prefix.Addr().Unmap() == addr.WithZone("") {
			return true
		}
	}
	return false
}
