package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

// What LoadedFilters reads from the kernel, and what it does to the process.

func loadedFilters(ctx context.Context, pid, tid int) ([]sandbox.Loaded, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	return sandbox.LoadedFilters(ctx, fd, pid, tid)
}

// What comes back is the profile's program, exactly.
func TestLoadedFiltersAreTheProfiles(t *testing.T) {
	_, filter, program := proofProfile(t)
	p := startProof(t, proofRole{Filters: [][]unix.SockFilter{program}})
	got, err := loadedFilters(t.Context(), p.pid, p.pid)
	must(t, err)
	if len(got) != 1 || got[0].Digest != filter.Digest() || got[0].Instructions != len(program) {
		t.Errorf("read %+v, want %s of %d instructions", got, filter.Digest(), len(program))
	}
}

// Index 0 of PTRACE_SECCOMP_GET_FILTER is the filter loaded first, whatever ptrace(2) says.
func TestLoadedFiltersAreInOrder(t *testing.T) {
	p := startProof(t, proofRole{Filters: [][]unix.SockFilter{allowing(2), allowing(3), allowing(4)}})
	got, err := loadedFilters(t.Context(), p.pid, p.pid)
	must(t, err)
	if len(got) != 3 || got[0].Instructions != 2 || got[1].Instructions != 3 || got[2].Instructions != 4 {
		t.Errorf("read %+v, want filters of 2, 3 and 4 instructions", got)
	}
}

// Being looked at again and again costs a process no signal, and leaves it as it was.
func TestLoadedFiltersLosesNoSignal(t *testing.T) {
	p := startProof(t, proofRole{Filters: [][]unix.SockFilter{allowing(2)}, Echo: true})
	ctx, stop := context.WithCancel(t.Context())
	var looks int
	var wait sync.WaitGroup
	wait.Go(func() {
		for ctx.Err() == nil {
			if _, err := loadedFilters(ctx, p.pid, p.pid); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
			looks++
		}
	})
	for range 1000 {
		must(t, unix.Kill(p.pid, unix.SIGUSR1))
		p.says(t, "signal") // the next only after it: two that wait are one
	}
	stop()
	wait.Wait()
	t.Logf("1000 signals arrived during %d looks", looks)
	if state := processState(t, p.pid); strings.ContainsAny(state, "tT") || tracerOf(p.pid) != "0" {
		t.Errorf("afterwards its state is %s, and its tracer %s", state, tracerOf(p.pid))
	}
}

// A process that somebody has stopped is looked at, and goes on being stopped.
func TestLoadedFiltersOfAStoppedProcess(t *testing.T) {
	p := startProof(t, proofRole{Filters: [][]unix.SockFilter{allowing(2)}, Echo: true})
	must(t, unix.Kill(p.pid, unix.SIGSTOP))
	stopped := func(context.Context) error {
		if state := processState(t, p.pid); state != "T" {
			return fmt.Errorf("its state is %s", state)
		}
		return nil
	}
	must(t, testbed.Await(t.Context(), "the process to stop", stopped))
	got, err := loadedFilters(t.Context(), p.pid, p.pid)
	if err != nil || len(got) != 1 {
		t.Errorf("read %v, %v", got, err)
	}
	must(t, testbed.Await(t.Context(), "the process to be stopped again", stopped))
	must(t, unix.Kill(p.pid, unix.SIGUSR1))
	must(t, unix.Kill(p.pid, unix.SIGCONT))
	p.says(t, "signal")
}

func TestLoadedFiltersSaysWhyNot(t *testing.T) {
	t.Run("traced", func(t *testing.T) {
		p := startProof(t, proofRole{Filters: [][]unix.SockFilter{allowing(2)}})
		end := traced(t, p.pid)
		_, err := loadedFilters(t.Context(), p.pid, p.pid)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) || !strings.Contains(err.Error(), "traces it already") {
			t.Errorf("a process that is traced: %v", err)
		}
		end()
		if got, err := loadedFilters(t.Context(), p.pid, p.pid); err != nil || len(got) != 1 {
			t.Errorf("afterwards: %v, %v", got, err)
		}
	})
	t.Run("without filter", func(t *testing.T) {
		p := startProof(t, proofRole{})
		if got, err := loadedFilters(t.Context(), p.pid, p.pid); err == nil || !strings.Contains(err.Error(), "it has none") {
			t.Errorf("read %v, %v", got, err)
		}
	})
	t.Run("gone", func(t *testing.T) {
		p := startProof(t, proofRole{})
		fd, err := unix.PidfdOpen(p.pid, 0)
		must(t, err)
		defer func() { _ = unix.Close(fd) }()
		must(t, unix.Kill(p.pid, unix.SIGKILL))
		must(t, testbed.Await(t.Context(), "its end", func(context.Context) error {
			if state := processState(t, p.pid); state != "Z" {
				return fmt.Errorf("its state is %s", state)
			}
			return nil
		}))
		if _, err := sandbox.LoadedFilters(t.Context(), fd, p.pid, p.pid); err == nil || !strings.Contains(err.Error(), os.ErrProcessDone.Error()) {
			t.Errorf("a process that has ended: %v", err)
		}
		// A pidfd of another process: this number is not its.
		other := startProof(t, proofRole{Filters: [][]unix.SockFilter{allowing(2)}})
		if _, err := sandbox.LoadedFilters(t.Context(), fd, other.pid, other.pid); err == nil {
			t.Error("the process of a number was taken for another that has ended")
		}
		must(t, testbed.Await(t.Context(), "the kernel to let go of it", func(context.Context) error {
			if tracer := tracerOf(other.pid); tracer != "0" {
				return fmt.Errorf("traced by %s", tracer)
			}
			return nil
		}))
	})
}

func processState(t *testing.T, pid int) string {
	t.Helper()
	return strings.Fields(procFields(pid, "status")["State"] + " ?")[0]
}

func tracerOf(pid int) string { return procFields(pid, "status")["TracerPid"] }

// Every way in which a loaded filter can be another than the profile's is found.
func TestExamineFilter(t *testing.T) {
	profile, filter, program := proofProfile(t)
	other := append([]unix.SockFilter{}, program...)
	last := len(other) - 1
	for other[last].Code != unix.BPF_RET|unix.BPF_K || other[last].K == unix.SECCOMP_RET_ALLOW {
		last--
	}
	other[last].K = unix.SECCOMP_RET_ERRNO | uint32(unix.EACCES) // of the same length
	filters := func(list ...[]unix.SockFilter) proofRole { return proofRole{Filters: list} }
	for name, c := range map[string]struct {
		role  proofRole
		check string // that has to fail; "" for none
		got   string
	}{
		"the profile's":         {filters(program), "", filter.Digest()},
		"under a caller's":      {filters(allowing(2), program), "", "under 1 of the caller's"},
		"none":                  {filters(), "filter", ""},
		"one of the length":     {filters(other), "filter", "another profile"},
		"allowing":              {filters(allowing(2)), "filter", "another profile"},
		"on one thread, of all": {proofRole{Lonely: program}, "threads", "differs in no_new_privs, seccomp mode, filters"},
	} {
		t.Run(name, func(t *testing.T) {
			p := startProof(t, c.role)
			spec := launch.Spec{Service: "test", User: "nobody", Command: []string{"/usr/bin/cat"}, Seccomp: profile}
			x, err := launch.Examine(t.Context(), []launch.Subject{{Spec: spec, First: p.pid}}, false)
			must(t, err)
			check := c.check
			if check == "" {
				check = "filter"
			}
			f := findingOf(t, x[0].Findings, p.pid, check)
			if f.OK != (c.check == "") || !strings.Contains(f.Got, c.got) {
				t.Errorf("got %+v, want ok %v and %q", f, c.check == "", c.got)
			}
		})
	}
}

// Where a profile lets a service load filters, what it loads itself is found.
func TestExamineFilterLoadedLater(t *testing.T) {
	profile, filter, program := proofProfile(t, "seccomp")
	p := startProof(t, proofRole{Filters: [][]unix.SockFilter{program, allowing(2)}})
	spec := launch.Spec{Service: "test", User: "nobody", Command: []string{"/usr/bin/cat"}, Seccomp: profile}
	x, err := launch.Examine(t.Context(), []launch.Subject{{Spec: spec, First: p.pid}}, false)
	must(t, err)
	if f := findingOf(t, x[0].Findings, p.pid, "filter"); f.OK || !strings.Contains(f.Got, filter.Digest()+", and 1 loaded after it") {
		t.Errorf("got %+v", f)
	}
}

func findingOf(t *testing.T, findings []launch.Finding, pid int, check string) launch.Finding {
	t.Helper()
	for _, f := range findings {
		if f.PID == pid && f.Check == check {
			return f
		}
	}
	t.Fatalf("no finding %s of process %d in %+v", check, pid, findings)
	return launch.Finding{}
}
