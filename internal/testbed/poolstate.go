package testbed

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// backend is one server as pgpool sees it.
type backend struct {
	address      netip.Addr
	status, role string // up, down, waiting, unused; primary, standby
}

// parsePoolNodes reads what SHOW pool_nodes says, unaligned: id|host|port|status|pg_status|weight|role|… Pure.
func parsePoolNodes(out string) ([]backend, error) {
	var list []backend
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) < 8 {
			return nil, fmt.Errorf("cannot read %q as a row of SHOW pool_nodes", line)
		}
		at, err := netip.ParseAddr(f[1])
		if err != nil {
			return nil, fmt.Errorf("cannot read %q as a row of SHOW pool_nodes: %w", line, err)
		}
		list = append(list, backend{at, f[3], f[6]})
	}
	if len(list) == 0 {
		return nil, errors.New("SHOW pool_nodes shows none")
	}
	return list, nil
}

// watchdog is the state of pgpool's watchdog cluster.
type watchdog struct {
	quorum bool
	alive  int // remote nodes
	leader string
}

var (
	watchdogQuorum = regexp.MustCompile(`(?m)^Quorum state\s*: QUORUM (EXIST|IS ON THE EDGE)\s*$`)
	watchdogAlive  = regexp.MustCompile(`(?m)^Alive Remote Nodes\s*: (\d{1,3})\s*$`)
	watchdogLeader = regexp.MustCompile(`(?m)^Leader Host Name\s*: (\S+)\s*$`)
)

// parseWatchdog reads the report of pcp_watchdog_info -v. Pure.
func parseWatchdog(out string) (watchdog, error) {
	alive := watchdogAlive.FindStringSubmatch(out)
	if alive == nil {
		return watchdog{}, fmt.Errorf("cannot read %q as a report of pcp_watchdog_info", out)
	}
	w := watchdog{quorum: watchdogQuorum.MatchString(out)}
	for _, c := range alive[1] {
		w.alive = w.alive*10 + int(c-'0')
	}
	if m := watchdogLeader.FindStringSubmatch(out); m != nil {
		w.leader = m[1]
	}
	return w, nil
}
