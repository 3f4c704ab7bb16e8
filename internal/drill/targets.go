package drill

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
)

// listenUnix makes the sockets that attempts are aimed at. They are this process's
// and end with it.
func (b *box) listenUnix(ctx context.Context) error {
	for _, s := range []struct {
		name string
		mode os.FileMode
	}{{"@" + abstractName, 0}, {b.rootSocket(), 0o600}, {b.agentSocket(), 0o600}, {b.publicSocket(), 0o666}} {
		l, err := (&net.ListenConfig{}).Listen(ctx, "unix", s.name)
		if err == nil && s.mode != 0 {
			err = os.Chmod(s.name, s.mode)
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
				conn.Close()
			}
		}()
	}
	return nil
}

// lowestAddress is what everybody can map, proc_sys_vm(5).
func lowestAddress() string {
	data, err := os.ReadFile("/proc/sys/vm/mmap_min_addr")
	if err != nil {
		return "65536"
	}
	return strings.TrimSpace(string(data))
}
