package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/pghardend/pghardend/pkg/config"
)

// Files in state_dir: the change that has to be confirmed, or was not; and what
// `confirm` writes where no daemon listens.
const (
	pendingFile   = "pending.json"
	confirmedFile = "confirmed"
)

// States of a pendingRecord.
const (
	pendingWaits    = "waiting"
	pendingRejected = "rejected" // it was not confirmed, and is not taken again
)

// How long a change may wait for its confirmation.
const (
	minConfirm = 10 * time.Second
	maxConfirm = time.Hour
)

// pendingRecord is what the next daemon has to know of a change that waits, or
// was put back. The state before is that of last-good.
type pendingRecord struct {
	Version int       `json:"version"`
	State   string    `json:"state"`
	Input   string    `json:"input"` // hash of the files
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
}

// hash tells one input from another.
func (i input) hash() string {
	h := sha256.New()
	fmt.Fprintf(h, "%d\n", len(i.config)) // or bytes could move from one file to the other
	h.Write(i.config)
	h.Write(i.peers)
	return hex.EncodeToString(h.Sum(nil))
}

// readPending returns nil if there is none.
func readPending(ctx context.Context, stateDir string) (*pendingRecord, error) {
	file := filepath.Join(stateDir, pendingFile)
	data, err := config.ReadFile(ctx, file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // none is what there mostly is
	}
	if err != nil {
		return nil, err
	}
	rec, err := parsePending(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &rec, nil
}

func parsePending(data []byte) (pendingRecord, error) {
	var rec pendingRecord
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, err
	}
	switch {
	case rec.Version != 1:
		return rec, fmt.Errorf("version is %d, not 1", rec.Version)
	case rec.State != pendingWaits && rec.State != pendingRejected:
		return rec, fmt.Errorf("state is %q", rec.State)
	case len(rec.Input) != hex.EncodedLen(sha256.Size):
		return rec, errors.New("input is no hash")
	}
	return rec, nil
}

func writePending(ctx context.Context, stateDir string, rec pendingRecord) error {
	if err := ownDir(ctx, stateDir); err != nil {
		return err
	}
	rec.Version = 1
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(ctx, filepath.Join(stateDir, pendingFile), data)
}

func forgetPending(ctx context.Context, stateDir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, name := range []string{pendingFile, confirmedFile} {
		file := filepath.Join(stateDir, name)
		if _, err := os.Lstat(file); err != nil {
			continue // nor could it be removed; a read-only file system complains even about what is not there
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// left is how much time the record leaves. It is never more than was given, even
// if the clock was set back.
func (r pendingRecord) left(now time.Time) time.Duration {
	wall := now.Round(0)
	return min(r.Until.Sub(wall), r.Until.Sub(r.Since), maxConfirm)
}
