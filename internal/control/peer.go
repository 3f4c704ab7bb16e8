package control

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

type peerKey struct{}

// withPeer keeps who is at the other end of a connection, SO_PEERCRED of unix(7).
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	controlErr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if controlErr != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, cred)
}

// peerOf describes for people who asks. Only the uid is the kernel's word for
// it: the rest is there to find a colleague, not to decide on.
func peerOf(ctx context.Context) string {
	cred, ok := ctx.Value(peerKey{}).(*unix.Ucred)
	if !ok {
		return "unknown"
	}
	about := []string{fmt.Sprintf("uid %d", cred.Uid)}
	proc := fmt.Sprintf("/proc/%d/", cred.Pid)
	if login, err := os.ReadFile(proc + "loginuid"); err == nil {
		// The audit uid survives su and sudo; unset is (uid_t)-1.
		if uid := strings.TrimSpace(string(login)); uid != "" && uid != fmt.Sprint(uint32(math.MaxUint32)) {
			about = append(about, "login uid "+uid)
		}
	}
	if environ, err := os.ReadFile(proc + "environ"); err == nil {
		if user := sudoUser(environ); user != "" {
			about = append(about, "sudo by "+user)
		}
	}
	return strings.Join(about, ", ")
}

// A name that useradd(8) would take, so that nothing else gets into a log.
var userName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.@\\-]{0,63}$`) })

// sudoUser takes who called sudo(8) out of an environment, and nothing else.
func sudoUser(environ []byte) string {
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if name, ok := bytes.CutPrefix(entry, []byte("SUDO_USER=")); ok && userName().Match(name) {
			return string(name)
		}
	}
	return ""
}
