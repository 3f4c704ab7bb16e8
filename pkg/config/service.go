package config

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	maxServices = 64 // more is a mistake of whatever writes the file
	minTimeout  = 100 * time.Millisecond
	maxTimeout  = 24 * time.Hour
	unlimited   = "unlimited"

	// The most that PostgreSQL takes for max_connections (its MAX_BACKENDS).
	maxMaxConnections = 1<<18 - 1
)

var (
	serviceName    = form{first: lower, rest: lower + digits + "-", most: 32}
	accountName    = form{first: letters + "_", rest: letters + digits + "_.-", most: 32}
	capabilityName = form{first: letters, rest: letters + digits + "_", most: 64}
	variableName   = form{first: letters + "_", rest: letters + digits + "_", most: math.MaxInt}
)

// Who starts a service.
const (
	startAgent    = "agent"
	startExternal = "external"
)

const serviceNameText = "a service name (a letter a-z, then at most 31 of a-z, 0-9 and -)"

// resources are the limits of setrlimit(2), Linux 2.6.25 or later for the last of them (rttime).
var resources = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile",
	"nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}

// loaderVariables make the dynamic loader, the C library or a shell load or run
// a file of somebody's choice in the confined process; see ld.so(8),
// iconv(3), setlocale(3), catopen(3), bash(1), dash(1). LD_* is refused as well.
var loaderVariables = []string{"GLIBC_TUNABLES", "GCONV_PATH", "GETCONF_DIR", "LOCPATH", "NLSPATH", "BASH_ENV", "ENV", "SHELLOPTS"}

func (r *configReader) services(key string, n *yaml.Node) {
	count := 0
	r.entries(key, n, "postgres: {profile: postgres, …}", func(name, key string, n *yaml.Node) {
		if count++; count == maxServices+1 {
			r.report(key, fmt.Sprintf("more than %d services", maxServices), "keep those that this node runs")
		}
		if count > maxServices {
			return
		}
		if !serviceName.matches(name) {
			fix := "write something like postgres"
			if small := strings.ToLower(name); serviceName.matches(small) {
				fix = "write " + small
			}
			r.report(key, quote(name)+" is not "+serviceNameText, fix)
		}
		r.service(key, n)
	})
}

func (r *configReader) service(key string, n *yaml.Node) {
	var command []string
	var dataDir string
	r.mapping(key, n, []field{
		{"profile", true, "profile: postgres", func(key string, n *yaml.Node) {
			r.matching(key, n, serviceName, "the name of a profile", "postgres")
		}},
		{"user", true, "user: postgres", func(key string, n *yaml.Node) { r.account(key, n, "user", "postgres") }},
		{"groups", false, "", func(key string, n *yaml.Node) {
			r.unique(key, n, "ssl-cert", func(key string, n *yaml.Node) string { return r.account(key, n, "group", "ssl-cert") })
		}},
		{"command", true, "command: [/usr/lib/postgresql/15/bin/postgres, -D, /var/lib/postgresql/15/main]", func(key string, n *yaml.Node) {
			command = r.command(key, n)
		}},
		{"helpers", false, "", func(key string, n *yaml.Node) { r.unique(key, n, "/etc/pgpool2/failover.sh", r.helper) }},
		{"data_dir", false, "", func(key string, n *yaml.Node) { dataDir = r.path(key, n, "/var/lib/postgresql/15/main") }},
		{"limits", false, "", r.limits},
		{"capabilities", false, "", func(key string, n *yaml.Node) {
			r.unique(key, n, "CAP_NET_RAW", func(key string, n *yaml.Node) string {
				s, _ := r.matching(key, n, capabilityName, "the name of a capability", "CAP_NET_RAW")
				return s
			})
		}},
		{"environment", false, "", func(key string, n *yaml.Node) { r.unique(key, n, "LANG=C.UTF-8", r.variable) }},
		{"oom_score_adj", false, "", func(key string, n *yaml.Node) { r.whole(key, n, -1000, 1000) }},
		{"landlock", false, "", r.landlock},
		{"mounts", false, "", r.mounts},
		{"cgroup", false, "", r.cgroup},
		{"selinux", false, "", r.serviceSELinux},
		{"features", false, "", r.features},
		{"mode", false, "", r.mode},
		{"complain_until", false, "", r.complainUntil},
		{"start", false, "", func(key string, n *yaml.Node) { r.oneOf(key, n, []string{startAgent, startExternal}) }},
		{"max_connections", false, "", func(key string, n *yaml.Node) { r.whole(key, n, 1, maxMaxConnections) }},
		{"start_timeout", false, "", r.timeout},
		{"stop_timeout", false, "", r.timeout},
	})
	r.dataDir(key, command, dataDir)
	r.checkMode(key, n)
}

func (r *configReader) timeout(key string, n *yaml.Node) {
	r.duration(key, n, minTimeout, maxTimeout, "60s")
}

// unique visits a list whose elements must differ in what visit returns; an
// element without result is not compared.
func (r *configReader) unique(key string, n *yaml.Node, example string, visit func(key string, n *yaml.Node) string) {
	seen := map[string]string{}
	r.items(key, n, example, func(key string, n *yaml.Node) {
		s := visit(key, n)
		if s == "" {
			return
		}
		if first, twice := seen[s]; twice {
			r.report(key, fmt.Sprintf("%s is in the list twice, first as %s on line %d", clip(s), first, r.lines.line(first)), "remove one of the two")
			return
		}
		seen[s] = key
	})
}

// account checks a user or group: a name, or a number with or without quotes.
func (r *configReader) account(key string, n *yaml.Node, what, example string) string {
	fix := "write the name of a " + what + " such as " + example + ", or its decimal number"
	s := n.Value
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" {
		var ok bool
		if s, ok = r.text(key, n, example); !ok {
			return ""
		}
	}
	if accountName.matches(s) {
		return s
	}
	// 2^32-1 is "no change" to setresuid(2).
	if id, err := strconv.ParseUint(s, 10, 32); err != nil || id == 1<<32-1 || !decimal(s) {
		r.report(key, quote(s)+" is neither the name nor the number of a "+what, fix)
		return ""
	}
	return s
}

func (r *configReader) command(key string, n *yaml.Node) []string {
	const example = "/usr/lib/postgresql/15/bin/postgres"
	var command []string
	count := r.items(key, n, example, func(itemKey string, n *yaml.Node) {
		s, ok := r.text(itemKey, n, example)
		if ok && command == nil {
			if problem := pathProblem(s); problem != "" || strings.HasSuffix(s, "/") {
				r.report(itemKey, orElse(problem, quote(s)+" is not the path of a file"), "write the absolute path of the program such as "+example)
			}
		}
		command = append(command, s)
	})
	if count == 0 {
		r.report(key, "the command is empty", "write `command: ["+example+", -D, /var/lib/postgresql/15/main]`")
	}
	return command
}

func (r *configReader) variable(key string, n *yaml.Node) string {
	const example = "LANG=C.UTF-8"
	s, ok := r.text(key, n, example)
	if !ok {
		return ""
	}
	name, _, found := strings.Cut(s, "=")
	switch {
	case !found || !variableName.matches(name):
		r.report(key, quote(s)+" is not NAME=value", "write something like "+example)
		return ""
	case strings.HasPrefix(name, "LD_") || slices.Contains(loaderVariables, name):
		r.report(key, clip(name)+" makes the process load code of somebody's choice", "remove it; install libraries and locales where the system looks for them")
		return ""
	}
	return name
}

// whole returns a whole number within bounds.
func (r *configReader) whole(key string, n *yaml.Node, least, most int) (v int, ok bool) {
	fix := fmt.Sprintf("write a whole number from %d to %d", least, most)
	s, ok := r.number(key, n, fix)
	if !ok {
		return 0, false
	}
	v, err := strconv.Atoi(s)
	if err != nil || v < least || v > most {
		r.report(key, clip(s)+" is out of range", fix)
		return 0, false
	}
	return v, true
}

// helper checks the path of a program. Whether it can be trusted is checked
// when the service starts.
func (r *configReader) helper(key string, n *yaml.Node) string {
	const example = "/etc/pgpool2/failover.sh"
	if n.Kind == yaml.ScalarNode && strings.HasSuffix(n.Value, "/") && !refusedFeature(n) {
		r.report(key, quote(n.Value)+" is not the path of a file", "write the absolute path of a program such as "+example)
		return ""
	}
	return r.path(key, n, example)
}

func (r *configReader) limits(key string, n *yaml.Node) {
	r.entries(key, n, "nofile: 65536", func(name, key string, n *yaml.Node) {
		if !slices.Contains(resources, name) {
			r.report(key, "unknown limit", didYouMean(name, resources, "known limits"))
			return
		}
		if n.Kind != yaml.MappingNode {
			r.resource(key, n)
			return
		}
		var soft, hard uint64
		var haveSoft, haveHard bool
		r.mapping(key, n, []field{
			{"soft", true, "soft: 1024", func(key string, n *yaml.Node) { soft, haveSoft = r.resource(key, n) }},
			{"hard", true, "hard: 1024", func(key string, n *yaml.Node) { hard, haveHard = r.resource(key, n) }},
		})
		if haveSoft && haveHard && soft > hard {
			r.report(key, fmt.Sprintf("the soft limit %s is above the hard limit %s", limitText(soft), limitText(hard)), "raise hard or lower soft")
		}
	})
}

func limitText(v uint64) string {
	if v == Unlimited {
		return unlimited
	}
	return strconv.FormatUint(v, 10)
}

// resource checks one value of a limit.
func (r *configReader) resource(key string, n *yaml.Node) (uint64, bool) {
	const fix = "write a whole number (bytes, seconds or a count, as setrlimit(2) has it), unlimited, or {soft: 1024, hard: 4096}"
	if n.Kind == yaml.ScalarNode && n.Value == unlimited {
		return Unlimited, !refusedFeature(n)
	}
	s, ok := r.number(key, n, fix)
	if !ok {
		return 0, false
	}
	v, err := strconv.ParseUint(s, 10, 64)
	switch {
	case strings.HasPrefix(s, "-"):
		r.report(key, clip(s)+" is negative", "write unlimited if there shall be no limit, else a whole number")
	case err != nil || v == Unlimited:
		r.report(key, clip(s)+" is too large", "write unlimited if there shall be no limit")
	default:
		return v, true
	}
	return 0, false
}

// limitOf turns what viper decoded into a Limit.
func limitOf(value any) Limit {
	if m, ok := value.(map[string]any); ok {
		return Limit{Soft: resourceOf(m["soft"]), Hard: resourceOf(m["hard"])}
	}
	v := resourceOf(value)
	return Limit{Soft: v, Hard: v}
}

func resourceOf(value any) uint64 {
	switch v := value.(type) {
	case int:
		return uint64(v)
	case int64:
		return uint64(v)
	case uint64:
		return v
	}
	return Unlimited
}

// dataDirOf returns the data directory that a command line names. What follows
// -D must be an absolute path: it is the option of postgres, but a switch
// without value of pgpool.
func dataDirOf(command []string) string {
	if dir := Option(command, "-D", "--pgdata"); pathProblem(dir) == "" {
		return filepath.Clean(dir)
	}
	return ""
}

// Option returns the value of the last such option on a command line, as
// getopt(3) has it: short is one letter behind a dash, long a word behind two.
func Option(command []string, short, long string) (value string) {
	for i := 1; i < len(command); i++ {
		switch arg := command[i]; {
		case arg == "--":
			return value
		case (arg == short || arg == long) && i+1 < len(command):
			i++
			value = command[i]
		case strings.HasPrefix(arg, long+"="):
			value = strings.TrimPrefix(arg, long+"=")
		case strings.HasPrefix(arg, short) && arg != short:
			value = strings.TrimPrefix(arg, short)
		}
	}
	return value
}

// dataDir checks what data_dir and the command say together, and that no two
// services write to one directory.
func (r *configReader) dataDir(key string, command []string, dataDir string) {
	argument := Option(command, "-D", "--pgdata")
	if argument != "" && isPostgres(command) {
		if problem := pathProblem(argument); problem != "" {
			r.report(key+".command", "the data directory "+problem, "write an absolute path after -D")
			return
		}
	}
	named := dataDirOf(command)
	switch {
	case dataDir == "" && named == "":
		return
	case dataDir == "":
		dataDir = named
	case named != "" && named != dataDir:
		r.report(key+".data_dir", quote(dataDir)+" is not the directory of the command, "+quote(named), "remove data_dir or make both the same")
		return
	}
	if first, twice := r.dataDirs[dataDir]; twice {
		r.report(key, fmt.Sprintf("the data directory %s is also that of %s on line %d", quote(dataDir), first, r.lines.line(first)),
			"give each service its own")
		return
	}
	r.dataDirs[dataDir] = key
}

func isPostgres(command []string) bool {
	base := filepath.Base(command[0])
	return base == "postgres" || base == "postmaster"
}
