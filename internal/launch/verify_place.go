package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/limits"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

// LayerProcess is about which processes there are, and where.
const LayerProcess = "process"

// checkThreads compares all threads of a process with its first one: each has
// credentials, capabilities, no_new_privs and filters of its own, and tracers.
func checkThreads(ctx context.Context, leader sandbox.Status) (Finding, []int, error) {
	names, err := readNames(procPath(leader.PID, "task"))
	if err != nil {
		return Finding{}, nil, err
	}
	tids := []int{leader.PID}
	var faults []string
	for _, name := range names {
		tid, err := strconv.Atoi(name)
		if err != nil || tid == leader.PID {
			continue
		}
		s, err := sandbox.ReadThreadStatus(ctx, leader.PID, tid)
		if errors.Is(err, os.ErrProcessDone) {
			continue
		}
		if err != nil {
			return Finding{}, nil, err
		}
		tids = append(tids, tid)
		if what := threadFault(leader, s); what != "" {
			faults = append(faults, fmt.Sprintf("thread %d differs in %s", tid, what))
		}
	}
	f := finding(leader.PID, LayerProcess, "threads", "all alike", "all alike")
	if len(tids) == 1 {
		f.Got = "one"
	}
	if f.OK = len(faults) == 0; !f.OK {
		f.Got = strings.Join(faults, "; ")
	}
	return f, tids, nil
}

func threadFault(a, b sandbox.Status) string {
	var what []string
	for _, c := range []struct {
		name string
		same bool
	}{
		{"uid", a.UIDs == b.UIDs},
		{"gid", a.GIDs == b.GIDs},
		{"groups", numbers(a.Groups) == numbers(b.Groups)},
		{"capabilities", [5]sandbox.CapSet{a.Inh, a.Prm, a.Eff, a.Bnd, a.Amb} == [5]sandbox.CapSet{b.Inh, b.Prm, b.Eff, b.Bnd, b.Amb}},
		{"no_new_privs", a.NoNewPrivs == b.NoNewPrivs},
		{"seccomp mode", a.Seccomp == b.Seccomp},
		{"filters", a.Filters == b.Filters},
	} {
		if !c.same {
			what = append(what, c.name)
		}
	}
	return strings.Join(what, ", ")
}

// checkTracer: who traces a process makes its system calls what he likes. Another
// verify does so for a moment.
func checkTracer(ctx context.Context, s sandbox.Status, around surroundings) Finding {
	f := finding(s.PID, LayerProcess, "tracer", "none", "none")
	if s.TracerPID == 0 {
		return f
	}
	f.OK, f.Got = false, fmt.Sprintf("thread %d", s.TracerPID)
	if t, err := sandbox.ReadStatus(ctx, s.TracerPID); err == nil {
		f.OK = around.isAgent(t.TGID)
		f.Got = fmt.Sprintf("process %d (%s)", t.TGID, shown(t.Name))
	}
	return f
}

// checkPlace compares where a process is: its namespaces with ours, in which the
// rules hold, and its cgroup with that of the first process.
func checkPlace(pid int, l, first, self look) []Finding {
	return []Finding{
		finding(pid, LayerProcess, "network namespace", self.netns, l.netns),
		finding(pid, LayerProcess, "user namespace", self.userns, l.userns),
		finding(pid, LayerProcess, "cgroup", cgroupText(first.cgroup), cgroupText(l.cgroup)),
	}
}

// cgroupText is the text of /proc/PID/cgroup in one line, cgroups(7). The last
// line is that of version 2, if there is one.
func cgroupText(lines string) string {
	return shown(strings.ReplaceAll(strings.TrimSpace(lines), "\n", " "))
}

// checkOOMScore is for the first process: others give themselves theirs.
func checkOOMScore(ctx context.Context, spec Spec, pid, score int) []Finding {
	if spec.OOMScoreAdj == nil || ctx.Err() != nil {
		return nil
	}
	return []Finding{finding(pid, LayerProcess, "oom_score_adj", strconv.Itoa(*spec.OOMScoreAdj), strconv.Itoa(score))}
}

func readOOMScore(ctx context.Context, pid int) (int, error) { return limits.OOMScore(ctx, pid) }

// readLabel is the label that a security module shows of a process, SELinux's
// domain for one; "" where there is none, proc_pid_attr(5).
func readLabel(pid int) (string, error) {
	data, err := os.ReadFile(procPath(pid, "attr/current"))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) {
		return "", nil
	}
	return shown(strings.TrimRight(string(data), "\x00\n")), err
}
