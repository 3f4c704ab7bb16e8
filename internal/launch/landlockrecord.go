package launch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/mac"
)

// processID names one process of one boot.
type processID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start_ticks"` // field 22 of /proc/PID/stat
	Boot  string `json:"boot_id"`
}

// launchRecord is what a launch leaves of its Landlock step. Its file is root's;
// the process that writes it is the launch stage, before the service's program
// runs.
type launchRecord struct {
	processID
	Time     time.Time     `json:"time"`
	ABI      int           `json:"abi"`      // 0: the kernel has no Landlock, and the service runs without
	Rules    string        `json:"rules"`    // digest
	Enforced []string      `json:"enforced"` // features in the rules
	Probed   []string      `json:"probed"`   // those of them that were tried
	Missing  []mac.Feature `json:"missing"`  // too new for the kernel
}

// maxLaunchRecord is far more than a record has.
const maxLaunchRecord = 16 << 10

// createRecord makes the file for this process and removes those of processes of
// the service that are gone.
func createRecord(ctx context.Context, dir, service string, pid int) (*os.File, processID, error) {
	id, err := identify(ctx, pid)
	if err != nil {
		return nil, id, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, id, err
	}
	old, err := filepath.Glob(filepath.Join(dir, service+".*.json"))
	if err != nil {
		return nil, id, err
	}
	for _, path := range old {
		if path == recordPath(dir, service, pid) || outdated(ctx, path) {
			_ = os.Remove(path) // what stays is of no consequence: it names a process that is gone
		}
	}
	file, err := os.OpenFile(recordPath(dir, service, pid), os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	return file, id, err
}

// outdated says whether a record is of a process that is gone. One that cannot be
// read may be about to be written, by another launch of the service.
func outdated(ctx context.Context, path string) bool {
	name := strings.TrimSuffix(filepath.Base(path), ".json")
	pid, err := strconv.Atoi(name[strings.LastIndexByte(name, '.')+1:])
	if err != nil {
		return false
	}
	alive, err := identify(ctx, pid)
	if err != nil {
		return errors.Is(err, ErrVanished)
	}
	if zombie, err := isZombie(pid); err == nil && zombie {
		return true
	}
	r, err := readRecordFile(path)
	return err == nil && r.processID != alive
}

func recordPath(dir, service string, pid int) string {
	return filepath.Join(dir, service+"."+strconv.Itoa(pid)+".json")
}

// identify reads what tells a process from all others.
func identify(ctx context.Context, pid int) (processID, error) {
	if err := ctx.Err(); err != nil {
		return processID{}, err
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		err = ErrVanished
	}
	if err != nil {
		return processID{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return processID{}, err
	}
	start, err := parseStart(string(stat))
	return processID{PID: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, err
}

// isZombie says whether a process is only waiting for somebody to reap it. While
// another thread lives it is not: so looks, for a moment, a launch that becomes its
// service from a thread that is not the first (de_thread in fs/exec.c).
func isZombie(pid int) (bool, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const afterName = 20 - 3 // num_threads, proc(5); field 3 is the first behind the name
	return len(fields) > afterName && fields[0] == "Z" && fields[afterName] == "1", nil
}

// parseStart takes the start time from the text of /proc/PID/stat; see parseParent.
func parseStart(stat string) (uint64, error) {
	const afterName = 22 - 3 // field 3 is the first behind the name
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= afterName {
		return 0, errors.New("no start time in /proc/PID/stat")
	}
	return strconv.ParseUint(fields[afterName], 10, 64)
}

// write: that the record cannot be written is told by Verify, which misses it.
func (r launchRecord) write(file *os.File) {
	if file == nil {
		return
	}
	if data, err := json.Marshal(r); err == nil {
		_, _ = file.Write(append(data, '\n'))
	}
}

func readRecordFile(path string) (launchRecord, error) {
	var r launchRecord
	err := readRecord(path, &r)
	return r, err
}

// readRecord reads the record of a launch.
func readRecord(path string, into any) error {
	data, err := readSmall(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func readSmall(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data := make([]byte, maxLaunchRecord)
	n, err := file.Read(data)
	return data[:n], err
}

// LandlockState is what is known of the Landlock domain of a live process. The
// kernel has no way to ask for it, so this is what its launch stage probed. All
// descendants of the process are in the same domain.
type LandlockState struct {
	Mode string
	// Fault says why nothing is known; the rest is empty then.
	Fault string

	record launchRecord
	digest string
}

// ReadLandlock finds what the launch of a service's first process left.
func ReadLandlock(ctx context.Context, spec Spec, pid int) (LandlockState, error) {
	s := LandlockState{Mode: spec.Landlock.Mode, digest: spec.Landlock.Rules.Digest()}
	if s.Off() {
		return s, nil
	}
	id, err := identify(ctx, pid)
	if err != nil {
		return s, fmt.Errorf("cannot identify process %d of service %s: %w", pid, spec.Service, err)
	}
	if !readLaunch(spec.Landlock.RecordDir, spec.Service, id, "landlock", &s.record) {
		s.record = launchRecord{}
		s.Fault = "no record of its launch: it was started without Landlock, by something else or by an older version, or runtime_dir was emptied: restart it"
	}
	return s, nil
}

// Off says whether the service is to run without.
func (s LandlockState) Off() bool { return s.Mode == "" || s.Mode == LandlockOff }

// Enforced says whether the process was put into a domain.
func (s LandlockState) Enforced() bool { return !s.Off() && s.Fault == "" && s.record.ABI > 0 }

// Findings are for the first process of a service.
func (s LandlockState) Findings(pid int) []Finding {
	one := func(check, want, got string, ok bool) Finding {
		return Finding{PID: pid, Layer: LayerLandlock, Check: check, Want: want, Got: got, OK: ok}
	}
	switch {
	case s.Off():
		return nil
	case s.Fault != "":
		return []Finding{one("launch", "probed", s.Fault, false)}
	case s.record.ABI == 0:
		return []Finding{one("launch", s.Mode, "not enforced: the kernel has no Landlock", s.Mode == LandlockPreferred)}
	}
	at := "at launch, " + s.record.Time.Format(time.RFC3339)
	out := []Finding{one("rules", "those of the configuration", "others: restart the service", false)}
	if s.record.Rules == s.digest {
		out[0].Got, out[0].OK = out[0].Want, true
	}
	for _, name := range s.record.Enforced {
		got := "probed " + at
		if !slices.Contains(s.record.Probed, name) {
			got = "set " + at + ", with the rules that were probed"
		}
		out = append(out, one(name, "enforced", got, true))
	}
	for _, f := range s.record.Missing {
		out = append(out, one(f.Name, "enforced from Linux "+f.Kernel+" on", "not enforced", true))
	}
	return out
}

// Text says for people what is enforced, and that this is not of this moment.
func (s LandlockState) Text() string {
	switch {
	case s.Off():
		return "switched off (landlock.mode: off)"
	case s.Fault != "":
		return s.Fault
	case s.record.ABI == 0:
		return "the kernel has no Landlock, and landlock.mode is " + s.Mode
	}
	text := fmt.Sprintf("probed at launch, %s (ABI %d): %s", s.record.Time.Format(time.RFC3339), s.record.ABI, strings.Join(s.record.Probed, ", "))
	unprobed := slices.DeleteFunc(slices.Clone(s.record.Enforced), func(n string) bool { return slices.Contains(s.record.Probed, n) })
	if len(unprobed) > 0 {
		text += "; set with them: " + strings.Join(unprobed, ", ")
	}
	if len(s.record.Missing) > 0 {
		text += "; NOT enforced by this kernel: " + mac.FeatureText(s.record.Missing)
	}
	return text
}
