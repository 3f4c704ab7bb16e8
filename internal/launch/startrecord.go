package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// RecordsDir is the name of Spec.RecordDir in the runtime directory.
const RecordsDir = "launch"

// startRecord is what a launch leaves of the process that it became part of. Its file
// is root's, in Spec.RecordDir; it is written before the service's program runs.
type startRecord struct {
	processID
	// Filters are those that were there before the launch loaded one: of a container,
	// or of the directives of a unit, which all its processes inherit.
	Filters int `json:"filters_before"`
	// Launcher is the program of a launch without privileges, which stays executable in
	// the mounts that the unit has made; "" for all other launches.
	Launcher string `json:"launcher,omitempty"`
}

// recordStart: a launch without it is as confined as with it. It is only that nobody
// can say afterwards which filter is the service's own, and Verify tells.
func recordStart(ctx context.Context, spec Spec, filters int) {
	if spec.RecordDir == "" {
		return
	}
	file, id, err := createRecord(ctx, spec.RecordDir, spec.Service, os.Getpid())
	if err != nil {
		return
	}
	defer func() { _ = file.Close() }() // what was not written is a record that is missing
	if data, err := json.Marshal(startRecord{processID: id, Filters: filters}); err == nil {
		_, _ = file.Write(append(data, '\n'))
	}
}

// maxGenerations is more than there are between a service's first process and any other.
const maxGenerations = 32

// before says of a process how many of its filters are none of the service's. known is
// false where the launch has left nothing: then they are those of whoever looks.
type before struct {
	filters int
	known   bool
}

// filtersBefore looks for the record of the process or of who it descends from: nobody
// gets rid of a filter, so what it was started with it still has.
func filtersBefore(ctx context.Context, spec Spec, s sandbox.Status) (before, error) {
	r, known, err := findStart(ctx, spec, s)
	if err != nil || known {
		return before{filters: r.Filters, known: known}, err
	}
	own, err := sandbox.ReadStatus(ctx, 0)
	return before{filters: own.Filters}, err
}

func findStart(ctx context.Context, spec Spec, s sandbox.Status) (startRecord, bool, error) {
	pid, parent := s.TGID, s.PPID
	for range maxGenerations {
		if r, ok := readStart(ctx, spec, pid); ok || parent <= 1 {
			return r, ok, nil
		}
		up, err := sandbox.ReadStatus(ctx, parent)
		if errors.Is(err, os.ErrProcessDone) {
			break
		}
		if err != nil {
			return startRecord{}, false, err
		}
		pid, parent = up.TGID, up.PPID
	}
	return startRecord{}, false, nil
}

// readStart reads the record of one process of this boot.
func readStart(ctx context.Context, spec Spec, pid int) (startRecord, bool) {
	var r startRecord
	if spec.RecordDir == "" {
		return r, false
	}
	id, err := identify(ctx, pid)
	return r, err == nil && readLaunch(spec.RecordDir, spec.Service, id, "", &r)
}

// loaded says whether the process has a filter of the service's own. Without a record
// one more than the looker has is taken for it; of several nobody can say.
func (b before) loaded(s sandbox.Status) bool {
	return s.Filters > b.filters && (b.known || s.Filters == b.filters+1)
}

// want is what Findings ask for.
func (b before) want() string {
	if b.known {
		return fmt.Sprintf("%d or more", b.filters+1)
	}
	return fmt.Sprint(b.filters + 1)
}

// got is what the process has, and why that is not enough where it is not obvious.
func (b before) got(s sandbox.Status) string {
	text := fmt.Sprint(s.Filters)
	if s.Filters > 0 && !b.known && !b.loaded(s) {
		text += ", and no record of the launch says which were there before: it was started by something else or by an older version, or runtime_dir was emptied: restart it"
	}
	return text
}
