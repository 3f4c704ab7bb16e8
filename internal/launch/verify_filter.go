package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// profileDigest is the digest of the filter that the launch stage loads.
func profileDigest(spec Spec) (string, error) {
	filter, err := sandbox.Compile(spec.Seccomp)
	if err != nil {
		return "", err
	}
	return filter.Digest(), nil
}

// checkFilter reads the filters of all threads of a process from the kernel and
// compares them with the profile's.
func checkFilter(ctx context.Context, pid int, tids []int, want string) (Finding, []sandbox.Loaded, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return Finding{}, nil, ErrVanished
	}
	if err != nil {
		return Finding{}, nil, err
	}
	defer func() { _ = unix.Close(pidfd) }() // nothing was written
	var leaders []sandbox.Loaded
	for _, tid := range tids {
		loaded, err := sandbox.LoadedFilters(ctx, pidfd, pid, tid)
		if errors.Is(err, os.ErrProcessDone) && tid != pid {
			continue
		}
		if errors.Is(err, os.ErrProcessDone) {
			return Finding{}, nil, ErrVanished
		}
		f := finding(pid, layerSeccomp, "filter", want, "not readable")
		if err != nil {
			f.Got = "not readable: " + err.Error()
			return f, nil, nil
		}
		f.Got, f.OK = compareFilters(loaded, want)
		if !f.OK && tid != pid {
			f.Got = fmt.Sprintf("thread %d: %s", tid, f.Got)
		}
		if !f.OK {
			return f, loaded, nil
		}
		if tid == pid {
			leaders = loaded
		}
	}
	f := finding(pid, layerSeccomp, "filter", want, "")
	f.Got, f.OK = compareFilters(leaders, want)
	return f, leaders, nil
}

// compareFilters: what was loaded before the profile is of whoever started the
// launch stage, a container's manager or a unit's SystemCallFilter, and makes
// what is allowed less. The launch stage loads last, and no profile lets the
// service load any: what comes after is not what was asked for.
func compareFilters(loaded []sandbox.Loaded, want string) (got string, ok bool) {
	digests := make([]string, len(loaded))
	at := -1
	for i, l := range loaded {
		digests[i] = l.Digest
		if l.Digest == want {
			at = i
		}
	}
	switch {
	case at < 0 && len(loaded) == 0:
		return "none", false
	case at < 0:
		return strings.Join(digests, " ") + ": another profile or version of it, or of libseccomp", false
	case at < len(loaded)-1:
		return fmt.Sprintf("%s, and %d loaded after it: %s", want, len(loaded)-1-at, strings.Join(digests[at+1:], " ")), false
	case at > 0:
		return fmt.Sprintf("%s, under %d of the caller's", want, at), true
	}
	return want, true
}

// inheritedFilter judges a descendant by its number of filters. No process can
// get rid of one, seccomp(2), and the first process had its own before the
// program ran: who descends from it and has as many has the same.
func inheritedFilter(pid int, first, own sandbox.Status) Finding {
	f := finding(pid, layerSeccomp, "filter", fmt.Sprintf("the %d of process %d", first.Filters, first.PID), fmt.Sprintf("%d, inherited", own.Filters))
	f.OK = first.Seccomp == unix.SECCOMP_MODE_FILTER && own.Seccomp == first.Seccomp && own.Filters == first.Filters
	return f
}
