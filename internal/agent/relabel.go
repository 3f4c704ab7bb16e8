package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pghardend/pghardend/pkg/mac"
)

// differs compares what decides. A label without a level is one of a policy without them.
func differs(have, want mac.Context) bool {
	return have.Type != want.Type || have.Level != want.Level && have.Level != ""
}

// treePatience is for a whole data directory, once: some 100,000 files. What takes
// longer goes on beside the loop.
const treePatience = 10 * time.Second

// tree says whether this is about all that is in a directory.
func (c labelChange) tree() bool { return c.of.inside && c.path == c.of.path }

func (p selinuxPlan) patience() time.Duration {
	if slices.ContainsFunc(p.labels, labelChange.tree) {
		return treePatience
	}
	return diskPatience
}

// relabel puts back what may be put back. What was exchanged meanwhile is seen by the
// next look.
func (p selinuxPlan) relabel(ctx context.Context) error {
	var errs []error
	for _, c := range p.labels {
		var err error
		if c.tree() {
			err = relabelTree(context.WithoutCancel(ctx), c.of)
		}
		if err = errors.Join(err, mac.Relabel(ctx, c.path, c.want)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s: %w", c.of.what, err))
		}
	}
	return errors.Join(errs...)
}

// relabelTree labels all that is in a directory, however deep, and not the directory
// itself: one that has its label says that all in it had theirs once, so nobody has to
// look at each file of a database again and again. It is what a data directory
// needs that was made before the policy module was there.
func relabelTree(ctx context.Context, w wantedLabel) error {
	var errs []error
	err := filepath.WalkDir(w.path, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) || path == w.path && err == nil {
			return nil // a server is at work
		}
		if err == nil && !e.IsDir() && !e.Type().IsRegular() {
			return nil
		}
		typ := w.typ
		if filepath.Dir(path) == w.path {
			typ = w.typeOf(e.Name())
		}
		var have mac.Context
		if err == nil {
			have, err = mac.FileLabel(ctx, path)
		}
		if want := w.context(typ); errors.Is(err, mac.ErrNoLabel) || err == nil && differs(have, want) {
			err = mac.Relabel(ctx, path, want)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, mac.ErrNotOurs) {
			errs = append(errs, err)
		}
		if len(errs) > 10 {
			return errors.New("…")
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}
