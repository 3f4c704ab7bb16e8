package launch

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// environment is what the program gets: its variables, sorted, and the number
// of activation sockets they announce.
type environment struct {
	vars    []string
	sockets int
}

// fixedPath leaves out /usr/local, which groups other than root may write to; a
// service that needs it sets PATH itself.
const fixedPath = "/usr/sbin:/usr/bin:/sbin:/bin"

// inherited are the variables taken over from the caller as they are. Besides
// them there are LC_*, and WATCHDOG_* and LISTEN_* where meant for this process.
var inherited = []string{"LANG", "TZ", "NOTIFY_SOCKET"}

// managed are variables of the service manager's protocol with this process,
// sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).
var managed = []string{
	"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
	"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID",
}

const (
	capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits   = "0123456789"
)

// isVariable: letters, digits and _, no digit in front.
func isVariable(name string) bool {
	const letters = capitals + "abcdefghijklmnopqrstuvwxyz_"
	return name != "" && !strings.Contains(digits, name[:1]) && strings.Trim(name, letters+digits) == ""
}

// isLocale: LC_ALL, LC_MESSAGES and the like.
func isLocale(name string) bool {
	category, ok := strings.CutPrefix(name, "LC_")
	return ok && category != "" && strings.Trim(category, capitals) == ""
}

// buildEnvironment starts from nothing and adds, later ones winning: what is
// fixed, what the allow-list lets through of the caller's, and extra.
func buildEnvironment(caller []string, pid int, id Identity, extra []string) (environment, error) {
	from := make(map[string]string, len(caller))
	for _, entry := range caller {
		if name, value, ok := strings.Cut(entry, "="); ok {
			from[name] = value
		}
	}
	to := map[string]string{"PATH": fixedPath, "HOME": id.Home, "USER": id.User, "LOGNAME": id.User}
	for name, value := range from {
		if slices.Contains(inherited, name) || isLocale(name) {
			to[name] = value
		}
	}
	copyWatchdog(from, to, pid)
	sockets, err := copyListen(from, to, pid)
	if err != nil {
		return environment{}, err
	}
	if err := addExtra(extra, to); err != nil {
		return environment{}, err
	}
	vars := make([]string, 0, len(to))
	for name, value := range to {
		vars = append(vars, name+"="+value)
	}
	slices.Sort(vars)
	return environment{vars: vars, sockets: sockets}, nil
}

// copyWatchdog passes the watchdog on unless it is another process's.
func copyWatchdog(from, to map[string]string, pid int) {
	usec, ok := from["WATCHDOG_USEC"]
	owner, owned := from["WATCHDOG_PID"]
	if !ok || owned && owner != strconv.Itoa(pid) {
		return
	}
	to["WATCHDOG_USEC"] = usec
	if owned {
		to["WATCHDOG_PID"] = owner
	}
}

// copyListen passes activation sockets on if they are meant for this process,
// and counts them.
func copyListen(from, to map[string]string, pid int) (int, error) {
	if from["LISTEN_PID"] != strconv.Itoa(pid) {
		return 0, nil
	}
	text := from["LISTEN_FDS"]
	count, err := strconv.Atoi(text)
	if err != nil || count < 0 || count > math.MaxInt32-firstPassed {
		return 0, fmt.Errorf("LISTEN_FDS=%q is not a number of descriptors: correct the caller", text)
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if value, ok := from[name]; ok {
			to[name] = value
		}
	}
	return count, nil
}

// addExtra adds the variables of the configuration.
func addExtra(extra []string, to map[string]string) error {
	var errs []error
	seen := make(map[string]bool, len(extra))
	for _, entry := range extra {
		name, value, ok := strings.Cut(entry, "=")
		if err := variableFault(name, ok, value); err != nil {
			errs = append(errs, err)
			continue
		}
		if seen[name] {
			errs = append(errs, fmt.Errorf("environment: %s is set twice: keep one", name))
		}
		seen[name] = true
		to[name] = value
	}
	return errors.Join(errs...)
}

// variableFault refuses what would undo the allow-list.
func variableFault(name string, complete bool, value string) error {
	switch {
	case !complete:
		return fmt.Errorf("environment: %q has no value: write NAME=value", name)
	case !isVariable(name):
		return fmt.Errorf("environment: %q is not the name of a variable: use letters, digits and _", name)
	case strings.ContainsRune(value, 0):
		return fmt.Errorf("environment: the value of %s holds a NUL byte: take it out", name)
	case strings.HasPrefix(name, "LD_"), name == "GLIBC_TUNABLES":
		return fmt.Errorf("environment: %s changes what code the program loads and is never passed: install libraries where the loader finds them (ld.so.conf)", name)
	case slices.Contains(managed, name):
		return fmt.Errorf("environment: %s belongs to the service manager: take it out", name)
	}
	return nil
}
