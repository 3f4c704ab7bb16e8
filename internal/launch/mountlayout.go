package launch

import (
	"context"
	"path/filepath"

	"github.com/pghardend/pghardend/pkg/mounts"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

// procDir is where PostgreSQL's children change their OOM score, and where the memory
// of other processes can be written to.
const procDir = "/proc"

// mountedFor is what the mounts of a process depend on beside the Spec.
type mountedFor struct {
	complains bool   // it was started to see what would be denied
	sealProc  bool   // it has no OOM score to change
	unit      string // the launch's program, where a unit made the mounts; "" where the launch did
}

// mountLayout adds what is executed: each file by itself, and of a program that is
// installed below a directory of its own (/opt/pgsql/bin/postgres) its libraries.
func mountLayout(ctx context.Context, spec Spec, of mountedFor) (mounts.Layout, error) {
	files, err := executables(spec)
	if err != nil {
		return mounts.Layout{}, err
	}
	paths := spec.Mounts.Paths
	paths.Exec = append(append([]string{}, paths.Exec...), files...)
	if bin := filepath.Dir(spec.Command[0]); filepath.Base(bin) == "bin" {
		paths.Exec = append(paths.Exec, librariesOf(filepath.Dir(bin))...)
	}
	if of.complains {
		paths.Exec = append(paths.Exec, spec.Mounts.Programs...)
	}
	if of.sealProc {
		paths.ReadOnly = append(append([]string{}, paths.ReadOnly...), procDir)
	}
	if of.unit == "" {
		return mounts.Resolve(ctx, paths)
	}
	paths.Exec = append(paths.Exec, of.unit)
	layout, err := mounts.Resolve(ctx, paths)
	return layout.OfUnit(), err
}

// librariesOf are the directories of libraries beside a directory bin. Those of the
// system are in its list already, and more exactly.
func librariesOf(prefix string) []string {
	if prefix == "/" || prefix == "/usr" || prefix == "/usr/local" {
		return nil
	}
	return []string{filepath.Join(prefix, "lib"), filepath.Join(prefix, "lib64")}
}

// mountsOf is what a live process has, and what it should have.
func mountsOf(ctx context.Context, spec Spec, pid int) (mounts.Layout, mounts.Table, error) {
	table, err := mounts.ReadTable(ctx, pid)
	if err != nil {
		return mounts.Layout{}, nil, err
	}
	var of mountedFor
	status, err := sandbox.ReadStatus(ctx, pid)
	if err != nil {
		return mounts.Layout{}, nil, err
	}
	start, known, err := findStart(ctx, spec, status)
	if err != nil {
		return mounts.Layout{}, nil, err
	}
	of.unit = start.Launcher
	if spec.Complain.On && of.unit == "" {
		others := before{filters: start.Filters, known: known}
		if !known {
			own, err := sandbox.ReadStatus(ctx, 0)
			if err != nil {
				return mounts.Layout{}, nil, err
			}
			others.filters = own.Filters
		}
		of.complains = !others.loaded(status)
	}
	if of.unit != "" {
		layout, err := mountLayout(ctx, spec, of)
		return layout, table, err
	}
	if spec.OOMScoreAdj != nil {
		of.sealProc = *spec.OOMScoreAdj == 0
	} else if proc, ok := table.At(procDir); ok {
		// What score it inherited is not known any more; read-only is not asked for, and shown if it is there.
		of.sealProc = proc.Point == procDir && proc.Has("ro")
	}
	layout, err := mountLayout(ctx, spec, of)
	return layout, table, err
}
