package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Chosen is a feature of a seccomp profile, and why it was chosen.
type Chosen struct {
	Feature string `json:"feature"`
	Because string `json:"because"`
}

// ProfileRecord is what a launch leaves of the choice of its seccomp profile: the
// kernel shows a filter, and not what it was made of. Its file is root's; the
// process that writes it is the launch stage, before the service's program runs.
type ProfileRecord struct {
	processID
	Time   time.Time `json:"time"`
	Chosen []Chosen  `json:"chosen"`
	// Wanted are features that the service's own settings ask for and that the
	// configuration does not allow.
	Wanted []Chosen `json:"wanted,omitempty"`
	Before []string `json:"before,omitempty"` // features of the launch before
	Unit   bool     `json:"unit,omitempty"`   // it was a launch without privileges
}

// RecordProfile writes the record of this process, which is about to become the
// service, to dir.
func RecordProfile(ctx context.Context, dir, service string, chosen, wanted []Chosen) error {
	r := ProfileRecord{Time: time.Now().UTC().Truncate(time.Second), Chosen: chosen, Wanted: wanted}
	r.Before = lastFeatures(dir, service)
	file, id, err := createRecord(ctx, dir, service, os.Getpid())
	if err != nil {
		return fmt.Errorf("cannot record the profile of service %s: %w", service, err)
	}
	r.processID = id
	data, err := json.Marshal(r)
	if err == nil {
		_, err = file.Write(data)
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("cannot record the profile of service %s: %w", service, err)
	}
	return nil
}

// lastFeatures are those of the latest launch; nil if there is no record of one.
func lastFeatures(dir, service string) []string {
	files, err := filepath.Glob(filepath.Join(dir, service+".*.json"))
	if err != nil {
		return nil
	}
	var last ProfileRecord
	for _, file := range files {
		var r ProfileRecord
		if readRecord(file, &r) == nil && !r.Time.Before(last.Time) {
			last = r
		}
	}
	return last.Names()
}

// ReadProfile finds what the launch of a service's first process left in dir;
// false if it left nothing.
func ReadProfile(ctx context.Context, dir, service string, pid int) (ProfileRecord, bool, error) {
	id, err := identify(ctx, pid)
	if err != nil {
		return ProfileRecord{}, false, fmt.Errorf("cannot identify process %d of service %s: %w", pid, service, err)
	}
	var r ProfileRecord
	if !readLaunch(dir, service, id, "profile", &r) {
		return ProfileRecord{}, false, nil
	}
	return r, true, nil
}

// Names are the names of the chosen features, sorted.
func (r ProfileRecord) Names() []string {
	var names []string
	for _, c := range r.Chosen {
		names = append(names, c.Feature)
	}
	slices.Sort(names)
	return names
}
