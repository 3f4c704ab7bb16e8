package mac

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// PolicyChange is what the kernel announces of SELinux.
type PolicyChange struct {
	At        time.Time
	Mode      bool // the mode was switched; else a policy or booleans were loaded
	Enforcing bool // to this one
}

// PolicyWatcher hears of changes. Next has one caller at a time.
type PolicyWatcher struct{ conn *netlink.Conn }

// Messages of NETLINK_SELINUX, linux/selinux_netlink.h.
const (
	selinuxGroup      = 1 // SELNLGRP_AVC
	messageSetEnforce = 0x10
	messagePolicyLoad = 0x11
)

// WatchPolicy joins the kernel's notifications, which are sent to the first network
// namespace alone.
func WatchPolicy() (*PolicyWatcher, error) {
	conn, err := netlink.Dial(unix.NETLINK_SELINUX, &netlink.Config{Groups: 1 << (selinuxGroup - 1)})
	if err != nil {
		return nil, fmt.Errorf("cannot listen for changes of SELinux: %w", err)
	}
	return &PolicyWatcher{conn}, nil
}

// Next waits for the next change. If some were missed, it returns one that stands for
// them: a load.
func (w *PolicyWatcher) Next(ctx context.Context) (PolicyChange, error) {
	stop := context.AfterFunc(ctx, func() { _ = w.conn.SetReadDeadline(time.Unix(1, 0)) }) // fails if it is closed, which ends the read too
	defer stop()
	for {
		messages, err := w.conn.Receive()
		switch {
		case ctx.Err() != nil:
			return PolicyChange{}, ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			return PolicyChange{At: time.Now()}, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return PolicyChange{}, fmt.Errorf("cannot hear of changes of SELinux: %w", err)
		}
		for _, m := range messages {
			if c, ok := parsePolicyChange(uint16(m.Header.Type), m.Data); ok {
				c.At = time.Now()
				return c, nil
			}
		}
	}
}

// parsePolicyChange reads struct selnl_msg_setenforce or selnl_msg_policyload.
func parsePolicyChange(typ uint16, data []byte) (c PolicyChange, ok bool) {
	switch {
	case typ == messageSetEnforce && len(data) >= 4:
		return PolicyChange{Mode: true, Enforcing: binary.NativeEndian.Uint32(data) != 0}, true
	case typ == messagePolicyLoad:
		return PolicyChange{}, true
	}
	return c, false
}

// Close ends the watch; a Next that waits returns an error.
func (w *PolicyWatcher) Close() error { return w.conn.Close() }
