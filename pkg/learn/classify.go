package learn

import (
	"path"
	"strings"
)

// Types of processes that are no title's.
const (
	typeMain    = "main"
	typeBackend = "client backend"
	typeWorker  = "background worker"
	typeChild   = "child"
)

// postgresTypes are how titles of PostgreSQL 14 to 18 begin, after the name of the
// cluster if it has one: MyBackendType's descriptions in
// src/backend/utils/init/miscinit.c, and what the archiver, the startup process
// and others add with set_ps_display.
var postgresTypes = []string{
	"autovacuum launcher", "autovacuum worker", "background writer", "checkpointer", "walwriter", "walsummarizer",
	"archiver", "startup", "walreceiver", "walsender", "logger", "stats collector", "io worker", "slotsync worker",
	"logical replication launcher", "logical replication worker", "logical replication apply worker",
	"logical replication parallel apply worker", "logical replication parallel worker", "logical replication tablesync worker",
	"parallel worker", "standalone backend", "dead-end client backend",
}

// pgpoolTypes: src/main/pgpool_main.c and src/watchdog of pgpool-II.
var pgpoolTypes = map[string]string{
	"watchdog": "watchdog", "heartbeat": "heartbeat", "lifecheck": "lifecheck", "worker process": "worker process",
	"health check process": "health check", "PCP": "pcp", "pgpool logger": "logger",
}

// Classify names the type of a process by its program and its title, the first
// string of its command line. first is for the service's first process. A user of the
// database chooses part of a backend's title, and so may pass it for another's.
func Classify(program, exe, title string, first bool) string {
	if exe != program {
		return "helper " + clean(path.Base(exe))
	}
	if first {
		return typeMain
	}
	if rest, ok := strings.CutPrefix(title, "postgres: "); ok {
		return postgresType(rest)
	}
	if rest, ok := strings.CutPrefix(title, "pgpool: "); ok {
		for start, name := range pgpoolTypes {
			if strings.HasPrefix(rest, start) {
				return name
			}
		}
		return typeBackend
	}
	return typeChild
}

func postgresType(rest string) string {
	if _, after, named := strings.Cut(rest, ": "); named { // cluster_name
		if name := postgresType(after); name != typeBackend {
			return name
		}
	}
	rest = strings.TrimSpace(rest)
	best := ""
	for _, name := range postgresTypes {
		if (rest == name || strings.HasPrefix(rest, name+" ")) && len(name) > len(best) {
			best = name
		}
	}
	switch {
	case best != "":
		return best
	case strings.HasPrefix(rest, "bgworker: "):
		return typeWorker
	}
	return typeBackend
}

// clean keeps what is a name in recordings.
func clean(name string) string {
	name = strings.Map(func(r rune) rune {
		if strings.ContainsRune("._+-", r) || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, name)
	return name[:min(len(name), 40)]
}
