package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/learn"
)

// LearnProgress is how far a recording is.
type LearnProgress struct {
	Elapsed   time.Duration
	Processes int // that are watched now
	Types     int // of processes that have ended
	Calls     int // different system calls
	Lost      uint64
}

// Learn records what a service does until ctx is done, or for a time if that is
// not 0. It reads no daemon and changes nothing; a service that starts meanwhile is
// recorded from its first call on. progress is called about once a second. What
// was recorded is returned along with an error that ended it early.
func Learn(ctx context.Context, configFile, service string, length time.Duration, progress func(LearnProgress)) (learn.Recording, error) {
	rec := learn.Recording{Format: learn.Format, Version: learn.Version, Service: service, Architecture: runtime.GOARCH}
	cfg, err := LoadConfig(ctx, configFile)
	if err != nil {
		return rec, err
	}
	spec, err := ServiceSpec(cfg, service)
	if err != nil {
		return rec, err
	}
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return rec, fmt.Errorf("cannot name the recording: %w", err)
	}
	start := time.Now()
	svc := cfg.Services[slices.IndexFunc(cfg.Services, func(s config.Service) bool { return s.Name == service })]
	r, err := recordService(ctx, cfg, svc, spec, nil)
	if err != nil {
		return rec, fmt.Errorf("cannot record service %s: %w", service, err)
	}
	defer r.recorder.Close()
	if length > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, length)
		defer cancel()
	}
	err = r.until(ctx, start, progress)
	// The signal that ends the recording must not keep it from being written.
	err = errors.Join(err, r.finish(context.WithoutCancel(ctx)))
	lost, lostErr := r.recorder.Lost()
	rec.Runs = []learn.Run{{
		ID: hex.EncodeToString(id), Started: start.UTC().Format(time.RFC3339), Seconds: uint64(time.Since(start).Seconds()),
		Start: r.tracker.Started(), Lost: lost, Unresolved: r.tracker.Unresolved(),
	}}
	rec.Processes = r.tracker.Use(context.WithoutCancel(ctx))
	return rec, errors.Join(err, lostErr)
}

// until reads until ctx is done.
func (r *serviceRecorder) until(ctx context.Context, start time.Time, progress func(LearnProgress)) error {
	for next := start; ; {
		_, err := r.read(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the end that was asked for
		}
		if err != nil {
			return err
		}
		if time.Now().Before(next) {
			continue
		}
		next = time.Now().Add(time.Second)
		p := LearnProgress{Elapsed: time.Since(start)}
		p.Processes, p.Types, p.Calls = r.tracker.Counts()
		if p.Lost, err = r.recorder.Lost(); err != nil {
			return err
		}
		progress(p)
	}
}

// MergeRecording joins a recording with that of a file, which is read before
// anything is recorded: load it with ReadRecording.
func MergeRecording(a, b learn.Recording) (learn.Recording, error) { return learn.Merge(a, b) }

// ReadRecording reads a recording that Learn has made.
func ReadRecording(ctx context.Context, file string) (learn.Recording, error) {
	data, err := readForeign(ctx, file, learn.MaxSize)
	if err != nil {
		return learn.Recording{}, fmt.Errorf("cannot read the recording %s: %w", file, err)
	}
	return learn.Parse(file, data)
}

// WriteRecording writes a recording and beside it the profiles that are made of
// it. It returns the names of the files.
func WriteRecording(ctx context.Context, file string, r learn.Recording) ([]string, error) {
	text, err := r.Render()
	if err != nil {
		return nil, err
	}
	seccomp, err := r.Seccomp()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range []struct {
		suffix string
		data   []byte
	}{{"", text}, {".seccomp.json", seccomp}, {".landlock.yaml", r.Landlock()}} {
		if err := replaceFile(ctx, file+f.suffix, f.data); err != nil {
			return names, fmt.Errorf("cannot write %s: %w", file+f.suffix, err)
		}
		names = append(names, file+f.suffix)
	}
	return names, nil
}

// DiffRecording compares a recording with the profile of a name, and with what
// the configuration of the service declares.
func DiffRecording(ctx context.Context, configFile, profile string, r learn.Recording) (learn.Difference, error) {
	cfg, err := LoadConfig(ctx, configFile)
	if err != nil {
		return learn.Difference{}, err
	}
	cfg.Services = slices.Clone(cfg.Services)
	for i, svc := range cfg.Services {
		if svc.Name == r.Service {
			cfg.Services[i].Profile = profile
		}
	}
	spec, err := ServiceSpec(cfg, r.Service)
	if err != nil {
		return learn.Difference{}, err
	}
	judge, err := newJudge(ctx, spec)
	if err != nil {
		return learn.Difference{}, err
	}
	return learn.Diff(r, judge), nil
}
