package launch

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// maxEnvironment is far more than an environment has, in bytes.
const maxEnvironment = 1 << 20

// checkEnvironment compares the environment that a first process was started with
// to what the launch stage lets through. It shows names only, never a value. A
// process can overwrite what the kernel shows of it, environ(7), as PostgreSQL's
// backends do for ps; a postmaster does not. score is its OOM score.
func checkEnvironment(pid, score int, id Identity, extra []string) (Finding, error) {
	file, err := os.Open(procPath(pid, "environ"))
	if err != nil {
		return Finding{}, err
	}
	defer func() { _ = file.Close() }() // nothing was written
	data, err := io.ReadAll(io.LimitReader(file, maxEnvironment))
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return Finding{}, err
	}
	f := Finding{PID: pid, Layer: LayerProcess, Check: "environment", Want: "the allow-list and what is configured"}
	got := strings.FieldsFunc(string(data), func(r rune) bool { return r == 0 })
	faults := environmentFaults(got, id, environment{vars: extra}.withoutIdleOOM(score).vars)
	if f.OK = len(faults) == 0; f.OK {
		f.Got = fmt.Sprintf("%d variables, all of them allowed", len(got))
	} else {
		f.Got = strings.Join(faults, ", ")
	}
	return f, nil
}

// environmentFaults names the variables that are not as they should be.
func environmentFaults(got []string, id Identity, extra []string) []string {
	fixed := map[string]string{"PATH": fixedPath, "HOME": id.Home, "USER": id.User, "LOGNAME": id.User}
	for _, entry := range extra {
		if name, value, ok := strings.Cut(entry, "="); ok {
			fixed[name] = value
		}
	}
	var faults []string
	seen := map[string]bool{}
	for _, entry := range got {
		name, value, _ := strings.Cut(entry, "=")
		want, isFixed := fixed[name]
		switch {
		case seen[name]:
			faults = append(faults, shown(name)+" is there twice")
		case isFixed && value != want:
			faults = append(faults, shown(name)+" has another value")
		case !isFixed && !slices.Contains(inherited, name) && !slices.Contains(managed, name) && !isLocale(name):
			faults = append(faults, shown(name)+" is not allowed")
		}
		seen[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(fixed)) {
		if !seen[name] {
			faults = append(faults, name+" is missing")
		}
	}
	return faults
}
