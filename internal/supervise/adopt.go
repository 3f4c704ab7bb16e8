package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// found is what a look around came to. No process and no error: nothing runs.
type found struct {
	proc    *process // held, but not yet identified
	exe     exeID    // what the record says it runs; zero without a record
	stopped bool     // it is to be stopped, or to stay so
	reason  string   // why
	hint    string   // for the message, should a start fail
}

// foreignError is about a running process that is not to be touched.
type foreignError struct{ problem string }

func (e *foreignError) Error() string { return e.problem }

// look finds out whether the service already runs: by the record, else by
// postmaster.pid. A *foreignError says that something runs which is not ours; any
// other error that it cannot be known now.
func (k *keeper) look(ctx context.Context) (found, error) {
	rec, err := readRecord(ctx, k.spec.RecordFile)
	if err != nil {
		k.log.Warn("the record of the last daemon is lost", "error", err)
	}
	if rec.PID > 0 {
		f, err := k.lookByRecord(ctx, rec)
		if err != nil || f.proc != nil {
			return f, err
		}
	}
	if k.spec.DataDir != "" {
		f, err := k.lookByPIDFile(ctx)
		if err != nil || f.proc != nil || !rec.Stopped {
			return f, err
		}
	}
	if k.spec.DataDir == "" && k.spec.LaunchFile != "" {
		f, err := k.lookByLaunch(ctx)
		if err != nil || f.proc != nil {
			return f, err
		}
	}
	return found{stopped: rec.Stopped, reason: rec.Reason}, nil
}

func (k *keeper) lookByRecord(ctx context.Context, rec record) (found, error) {
	p, err := openProcess(ctx, rec.PID)
	if errors.Is(err, errGone) {
		return found{}, nil
	}
	if err != nil {
		return found{}, err
	}
	if p.start != rec.Start { // the PID went to another process
		p.close()
		return found{}, nil
	}
	if rec.DataDir != k.spec.DataDir {
		p.close()
		return found{}, k.foreign(p.pid, fmt.Sprintf("it was started on data directory %q", rec.DataDir))
	}
	return found{proc: p, exe: rec.Exe, stopped: rec.Stopped, reason: rec.Reason}, nil
}

// lookByPIDFile is the way when there is no record of the process.
func (k *keeper) lookByPIDFile(ctx context.Context) (found, error) {
	pf, err := readPIDFile(ctx, k.spec.DataDir)
	if errors.Is(err, os.ErrNotExist) {
		return found{}, nil
	}
	if err != nil {
		return found{}, err
	}
	p, err := openProcess(ctx, pf.pid)
	if errors.Is(err, errGone) { // left by a crash; the next postmaster replaces it
		return found{}, nil
	}
	if err != nil {
		return found{}, err
	}
	// The file is not read again: it vanishes while a postmaster ends.
	problem, err := k.identify(ctx, p, exeID{}, func() (pidFile, error) { return pf, nil })
	if err == nil && problem == "" {
		return found{proc: p}, nil
	}
	defer p.close()
	switch {
	case errors.Is(err, errGone):
		return found{}, nil
	case ctx.Err() != nil:
		return found{}, ctx.Err()
	case k.elsewhere(ctx, p):
		// A PID recycled since a crash. Should postgres itself mind, say why.
		hint := fmt.Sprintf("postmaster.pid names pid %d, which lives but does not run on %s: if postgres refuses to start because of it, remove %s",
			pf.pid, k.spec.DataDir, filepath.Join(k.spec.DataDir, pidFileName))
		k.log.Warn("postmaster.pid was left by a crash", "pid", pf.pid)
		return found{hint: hint}, nil
	case err != nil:
		return found{}, k.foreign(pf.pid, err.Error()) // what cannot be seen may be one
	default:
		return found{}, k.foreign(pf.pid, problem)
	}
}

// elsewhere reports whether a process surely is no server of our data directory: a
// server's working directory is its data directory, and its user the owner of it.
func (k *keeper) elsewhere(ctx context.Context, p *process) bool {
	dir, err := os.Stat(k.spec.DataDir)
	if err != nil || ctx.Err() != nil {
		return false
	}
	cwd, cwdErr := os.Stat(fmt.Sprintf("/proc/%d/cwd", p.pid))
	uid, uidErr := effectiveUID(p.pid)
	switch {
	case p.dead():
		return true
	case cwdErr == nil:
		return !os.SameFile(cwd, dir)
	default:
		return uidErr == nil && !owns(uid, dir)
	}
}

func owns(uid uint64, file os.FileInfo) bool {
	st, ok := file.Sys().(*syscall.Stat_t)
	return ok && uid == uint64(st.Uid)
}

// identify checks that a held process is the service. It returns what speaks
// against it, or an error if that cannot be seen; errGone if it ended.
func (k *keeper) identify(ctx context.Context, p *process, recorded exeID, read func() (pidFile, error)) (string, error) {
	f, err := p.facts(ctx)
	if err != nil {
		return "", err
	}
	if !f.exe.same(recorded) && !f.exe.same(serviceExe(ctx, k.spec)) {
		return fmt.Sprintf("it runs %s, not %s", f.exe.Path, k.spec.Exe), nil
	}
	if k.spec.DataDir == "" {
		return "", nil
	}
	pf, err := read()
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "it has no postmaster.pid", nil
	case err != nil:
		return err.Error(), nil //nolint:nilerr // a useless postmaster.pid is what speaks against the process
	}
	return k.identifyPostmaster(ctx, p, f, pf)
}

func (k *keeper) identifyPostmaster(ctx context.Context, p *process, f facts, pf pidFile) (string, error) {
	dir, err := os.Stat(k.spec.DataDir)
	if err != nil {
		return "", fmt.Errorf("cannot look at the data directory: %w", err)
	}
	switch {
	case !owns(f.uid, dir):
		return fmt.Sprintf("its uid is %d, not that of the directory's owner", f.uid), nil
	case !os.SameFile(f.cwd, dir):
		return "it works in another directory", nil
	case pf.single:
		return "it is a single-user postgres", nil
	case pf.pid != p.pid:
		return fmt.Sprintf("postmaster.pid names pid %d", pf.pid), nil
	case !sameDir(ctx, pf.dataDir, k.spec.DataDir):
		return fmt.Sprintf("its postmaster.pid names data directory %s", pf.dataDir), nil
	case p.dead():
		return "", errGone
	}
	return "", nil
}

// foreign words the refusal and the way out of it.
func (k *keeper) foreign(pid int, but string) error {
	name := k.spec.Name
	if k.spec.DataDir == "" {
		return &foreignError{fmt.Sprintf("%s already runs as pid %d but %s; end it (kill -INT %d), then `pghardend start --service %s`",
			name, pid, but, pid, name)}
	}
	return &foreignError{fmt.Sprintf("postgres with pid %d already runs on %s but %s; stop it (pg_ctl -D %s -m fast stop), then `pghardend start --service %s`",
		pid, k.spec.DataDir, but, k.spec.DataDir, name)}
}

// serviceExe identifies the file the launch stage will execute. The path is
// resolved, as /proc/PID/exe will show it; a file that is missing has a path only.
func serviceExe(ctx context.Context, spec Spec) exeID {
	path := spec.Exe
	if ctx.Err() == nil {
		if resolved, err := filepath.EvalSymlinks(path); err == nil {
			path = resolved
		}
	}
	id, err := statExe(path)
	if err != nil {
		return exeID{Path: path}
	}
	return id
}
