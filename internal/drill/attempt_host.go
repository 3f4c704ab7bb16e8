package drill

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What of the host attempts are aimed at, with stand-ins in the drill's mount namespace.
const (
	sudoProgram = "/usr/bin/sudo"
	sudoersFile = "/etc/sudoers"
	busDir      = "/run/dbus"
	busSocket   = busDir + "/system_bus_socket"
)

// hostAttempts: sudo of A41, D-Bus of A52.
func hostAttempts() []attempt {
	return []attempt{
		{row: "A41", name: "sudo", does: "become root by the host's sudo, which a scratch sudoers allows", base: asUser, fix: "this must not be possible, report it",
			act: words("become", sudoProgram, "-n", "/usr/bin/id", "-u"), judge: judgeSudo},
		{row: "A52", name: "dbus", does: "say hello on the system's D-Bus (a stand-in at " + busSocket + ")", base: asUser, fix: fixNoexec,
			act: words("bus", busSocket)},
	}
}

// judgeSudo reads what id said, if sudo ran it. sudo itself refuses under no_new_privs: it was
// executed then, and nothing was gained.
func judgeSudo(o outcome) outcome {
	if o.exit != 0 && strings.TrimSpace(o.said) == "" {
		return outcome{Step: stepGain, Note: fmt.Sprintf("sudo gave up with exit code %d", o.exit)}
	}
	return judgeUser(o)
}

// sudoers lets the drill's user do everything, and has sudo leave no trace on the host.
const sudoers = "Defaults !syslog, !use_pty, !pam_session, !pam_setcred, !lecture, timestamp_timeout=0\n" + User + " ALL=(ALL:ALL) NOPASSWD: ALL\n"

// allowSudo puts a file of rules in the place of the host's. Where there is no sudo the control fails, which
// the report says.
func (b *box) allowSudo() error {
	if _, err := os.Stat(sudoersFile); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	own := filepath.Join(b.Inside.Root, "etc", "sudoers")
	if err := writeFile(own, []byte(sudoers), 0o440); err != nil {
		return err
	}
	if err := unix.Mount(own, sudoersFile, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cannot mount %s: %w", own, err)
	}
	return nil
}

// listenBus stands in for the system's bus. Where the host has none there is none here.
func (b *box) listenBus(ctx context.Context) error {
	err := unix.Mount("tmpfs", busDir, "tmpfs", options, "mode=755")
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot hide %s: %w", busDir, err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", busSocket)
	if err == nil {
		err = os.Chmod(busSocket, 0o666)
	}
	if err != nil {
		return fmt.Errorf("cannot make a socket to attack: %w", err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go answerBus(conn)
		}
	}()
	return nil
}

// answerBus accepts whoever says AUTH EXTERNAL, as the bus does with any local user ("D-Bus Specification",
// Authentication Protocol).
func answerBus(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(actTime)) // of a socket it cannot fail
	line, err := bufio.NewReaderSize(conn, 256).ReadString('\n')
	if err == nil && strings.HasPrefix(line, "\x00AUTH EXTERNAL ") {
		_, _ = conn.Write([]byte("OK 0123456789abcdef0123456789abcdef\r\n")) // or it is gone
	}
}
