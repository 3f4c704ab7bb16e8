package supervise

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	pidFileName = "postmaster.pid"
	maxPIDFile  = 64 << 10 // bytes; a real one has some hundred
	maxPID      = 1 << 22  // PID_MAX_LIMIT of 64-bit kernels, proc_sys_kernel(5)
)

// pidFile is a postmaster.pid. Its lines, by number: 1 PID, 2 data directory,
// 3 start time, 4 port, 5 socket directory, 6 first listen address, 7 shared memory
// key, 8 status (PostgreSQL's pidfile.h). Only 1 and 2 are certain to be there.
type pidFile struct {
	pid       int
	single    bool // a single-user postgres, which writes its PID negated
	dataDir   string
	port      int
	socketDir string // "" if it has no Unix socket
	host      string // "" if it has no TCP socket
	status    string // starting, stopping, ready, standby; "" if not yet written
}

// parsePIDFile reads a postmaster.pid. A line counts only with its newline, so
// that a file caught half-written never yields half a number.
func parsePIDFile(data []byte) (pidFile, error) {
	lines := strings.Split(string(data), "\n")
	lines = lines[:len(lines)-1]
	if len(lines) < 2 {
		return pidFile{}, errors.New("it is empty or half-written")
	}
	line := func(number int) string {
		if number > len(lines) {
			return ""
		}
		return strings.TrimSpace(lines[number-1])
	}
	pid, err := strconv.Atoi(line(1))
	if err != nil || pid == 0 || pid > maxPID || pid < -maxPID {
		return pidFile{}, fmt.Errorf("its first line is %.20q, not a PID", lines[0])
	}
	pf := pidFile{pid: max(pid, -pid), single: pid < 0, dataDir: lines[1], socketDir: line(5), host: line(6), status: line(8)}
	if !filepath.IsAbs(pf.dataDir) || strings.ContainsRune(pf.dataDir, 0) {
		return pidFile{}, fmt.Errorf("its second line is %.80q, not an absolute path", lines[1])
	}
	if port := line(4); port != "" {
		pf.port, err = strconv.Atoi(port)
		if err != nil || pf.port < 0 || pf.port > 65535 {
			return pidFile{}, fmt.Errorf("its fourth line is %.20q, not a port", lines[3])
		}
	}
	return pf, nil
}

// readPIDFile reads DataDir/postmaster.pid; os.ErrNotExist if there is none.
func readPIDFile(ctx context.Context, dataDir string) (pidFile, error) {
	path := filepath.Join(dataDir, pidFileName)
	data, err := readPlain(ctx, path, maxPIDFile)
	if err != nil {
		return pidFile{}, fmt.Errorf("cannot read postmaster.pid: %w", err)
	}
	pf, err := parsePIDFile(data)
	if err != nil {
		return pidFile{}, fmt.Errorf("cannot use %s: %w; if no postgres runs on %s, remove it", path, err, dataDir)
	}
	return pf, nil
}

// accepting reports whether the postmaster says that it is up. "standby" is what a
// standby without hot_standby says, which is as up as it will get.
func (pf pidFile) accepting() bool {
	return pf.status == "ready" || pf.status == "standby"
}

// sameDir reports whether two paths are one directory.
func sameDir(ctx context.Context, a, b string) bool {
	if ctx.Err() != nil {
		return false
	}
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// clusterState is the DBState of pg_control: what the cluster's last server was at
// when it wrote the file.
type clusterState int

const (
	clusterUnknown  clusterState = iota // no pg_control, or not one we know
	clusterShutDown                     // ended by a shutdown checkpoint
	clusterOpen                         // anything else: it ended without one
)

// parseControl reads the state from the beginning of global/pg_control: system
// identifier (8 bytes), version of the file (4), version of the catalogue (4),
// state (4), in the byte order of the machine (PostgreSQL's pg_control.h).
func parseControl(data []byte) clusterState {
	const oldest, newest = 900, 9999 // versions of the file: 1300 is PostgreSQL 13 to 17
	if len(data) < 20 {
		return clusterUnknown
	}
	if v := binary.NativeEndian.Uint32(data[8:]); v < oldest || v > newest {
		return clusterUnknown
	}
	switch binary.NativeEndian.Uint32(data[16:]) {
	case 1, 2: // DB_SHUTDOWNED, DB_SHUTDOWNED_IN_RECOVERY
		return clusterShutDown
	case 0, 3, 4, 5, 6:
		return clusterOpen
	default:
		return clusterUnknown
	}
}

func readControl(ctx context.Context, dataDir string) clusterState {
	data, err := readPlain(ctx, filepath.Join(dataDir, "global", "pg_control"), maxPIDFile)
	if err != nil {
		return clusterUnknown
	}
	return parseControl(data)
}
