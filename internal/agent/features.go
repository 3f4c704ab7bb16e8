package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
)

// The features that the agent knows something of.
const (
	featureHelpers        = "helpers"
	featureHugePages      = "huge_pages"
	featureIOUring        = "io_uring"
	featureJIT            = "jit"
	featureLanguages      = "pl_languages"
	featureOldGlibc       = "old_glibc"
	featureOpenExec       = "open_exec"
	featureOrigin         = "origin"
	featurePG17           = "pg17"
	featureResolver       = "resolver"
	featureTrustedServers = "trusted_servers"
	featureDelegateIP     = "delegate_ip"
	featureUDP            = "udp"
)

// serverFacts is what the features of a service are derived from beside the
// configuration. The zero value says that nothing is known.
type serverFacts struct {
	settings  map[string]setting
	fault     error    // why there are no settings
	version   int      // of the data directory, PostgreSQL's major; 0: not known
	libraries []string // of those in interesting that are installed
	linkage   linkage  // of the program
}

// interesting are libraries of root's that say what the server is to be able to do.
var interesting = []string{"llvmjit.so", "plperl.so", "plpython3.so", "pltcl.so"}

// chooseFeatures decides. What the service's user can write (its settings) chooses
// only what is not worth anything to an attacker: a superuser of the database could
// otherwise widen the box by ALTER SYSTEM. The rest of what it asks for is wanted, and
// up to the administrator.
func chooseFeatures(cfg config.Config, svc config.Service, facts serverFacts) (chosen, wanted []launch.Chosen) {
	has := func(feature string) bool {
		return slices.ContainsFunc(chosen, func(c launch.Chosen) bool { return c.Feature == feature })
	}
	choose := func(feature, because string) {
		if !has(feature) {
			chosen = append(chosen, launch.Chosen{Feature: feature, Because: because})
		}
	}
	want := func(feature, because string) {
		if !has(feature) {
			wanted = append(wanted, launch.Chosen{Feature: feature, Because: because})
		}
	}
	key := "services." + svc.Name
	auto := false
	for i, name := range svc.Features {
		if name == config.FeaturesAuto {
			auto = true
			continue
		}
		choose(name, cfg.Where(fmt.Sprintf("%s.features[%d]", key, i)))
	}
	switch {
	case len(svc.Helpers) > 0:
		choose(featureHelpers, cfg.Where(key+".helpers")+": programs are declared")
	case helpersImplied(svc):
		choose(featureHelpers, "auto: with landlock.mode off every program can be executed")
	}
	switch svc.Profile {
	case config.RolePostgres:
		choosePostgres(facts, auto, choose, want)
	case config.RolePgpool:
		choosePgpool(facts, auto, choose)
		for _, feature := range []string{featureTrustedServers, featureDelegateIP} {
			if s, ok := facts.settings[feature]; ok && s.value != "" {
				want(feature, feature+" is set ("+s.where+")")
			}
		}
	default:
		if auto {
			choose(featureUDP, "auto: what the program sends is not known")
		}
	}
	return chosen, wanted
}

// helpersImplied: without Landlock nobody has to declare what is executed, so what
// is not declared has to work.
func helpersImplied(svc config.Service) bool {
	return len(svc.Helpers) > 0 || svc.Landlock.Mode == config.LandlockOff && slices.Contains(svc.Features, config.FeaturesAuto)
}

func choosePostgres(facts serverFacts, auto bool, choose, want func(feature, because string)) {
	get := func(name, def string) setting {
		if s, ok := facts.settings[name]; ok {
			return s
		}
		return setting{def, "PostgreSQL's default"}
	}
	switch {
	case facts.version == 0:
		choose(featurePG17, "the server's version is not known")
	case facts.version >= 17:
		choose(featurePG17, fmt.Sprintf("PG_VERSION says %d", facts.version))
	}
	if facts.version > 0 && facts.version < 15 {
		choose(featureUDP, fmt.Sprintf("PG_VERSION says %d: the statistics collector", facts.version))
	}
	if facts.linkage.oldGlibc {
		choose(featureOldGlibc, "the program was built with a glibc before 2.33")
	}
	if facts.linkage.origin {
		choose(featureOrigin, "the program looks for its libraries by $ORIGIN")
	}
	if auto {
		choose(featureResolver, "auto: host names are looked up at run time")
		switch s := get("huge_pages", "try"); {
		case facts.settings == nil:
			choose(featureHugePages, "auto: the server's settings are not known")
		case !s.off():
			choose(featureHugePages, fmt.Sprintf("auto: huge_pages is not off (%s)", s.where))
		}
		if facts.languages() != "" {
			choose(featureLanguages, "auto: "+facts.languages()+" is installed")
		}
	}
	// Its default is on, which nobody has asked for.
	if s, set := facts.settings["jit"]; set && !s.off() && slices.Contains(facts.libraries, "llvmjit.so") {
		want(featureJIT, fmt.Sprintf("jit is on (%s), but nothing is compiled: it is started with jit_provider=%s", s.where, noProvider))
	}
	if s := get("io_method", "worker"); s.value == "io_uring" {
		want(featureIOUring, fmt.Sprintf("io_method is io_uring (%s), with which the server does not start", s.where))
	}
	for _, name := range commandSettings {
		if s, ok := facts.settings[name]; ok && s.value != "" {
			want(featureHelpers, fmt.Sprintf("%s is set (%s): what it executes, the shell too, has to be in helpers", name, s.where))
			break
		}
	}
}

// commandSettings are executed by a shell.
var commandSettings = []string{"archive_command", "restore_command", "archive_cleanup_command", "recovery_end_command", "ssl_passphrase_command"}

func (f serverFacts) languages() string {
	return strings.Join(slices.DeleteFunc(slices.Clone(f.libraries), func(l string) bool { return !strings.HasPrefix(l, "pl") }), ", ")
}

// readServerFacts looks at files. None of the service's programs is run, so this
// costs a launch no time and needs no confinement.
func readServerFacts(ctx context.Context, svc config.Service) serverFacts {
	var f serverFacts
	switch {
	case isPostgres(svc):
		f.settings, f.fault = readPostgresSettings(ctx, svc)
		f.version = readVersion(ctx, svc.DataDir)
		f.libraries = installed(svc.Command[0])
		f.linkage = readLinkage(ctx, svc.Command[0])
	case svc.Profile == config.RolePgpool && pgpoolFile(svc.Command) != "":
		f.settings, f.fault = readPgpoolSettings(ctx, pgpoolFile(svc.Command))
	}
	return f
}

// readVersion is the major version of a data directory; 0 if that is not known.
func readVersion(ctx context.Context, dataDir string) int {
	if dataDir == "" {
		return 0
	}
	data, err := readForeign(ctx, filepath.Join(dataDir, "PG_VERSION"), 64)
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// installed looks where the packages of Debian, postgresql.org and Red Hat put
// libraries. The directories are root's, like the program.
func installed(program string) []string {
	var found []string
	for _, dir := range []string{filepath.Join(filepath.Dir(filepath.Dir(program)), "lib"), "/usr/lib64/pgsql", "/usr/lib/pgsql"} {
		for _, name := range interesting {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil && !slices.Contains(found, name) {
				found = append(found, name)
			}
		}
	}
	return found
}

// noProvider is no library, so that PostgreSQL compiles nothing and says nothing:
// jit_provider can be set at the start of the server only.
const noProvider = "none"

// otherProgram says whether the first argument makes something else of postgres than
// a server, which may take no such option.
func otherProgram(command []string) bool {
	return len(command) > 1 && slices.Contains([]string{"--boot", "--check", "--describe-config", "--fork", "--single"}, command[1])
}

// profilesDir in runtime_dir has the records of launches.
const profilesDir = "profiles"

// launchSpec is ServiceSpec with what is known of the server when it is started. What it
// was made of is recorded.
func launchSpec(ctx context.Context, cfg config.Config, service string) (launch.Spec, error) {
	spec, svc, facts, err := startSpec(ctx, cfg, service)
	if err != nil {
		return spec, err
	}
	chosen, wanted := chooseFeatures(cfg, svc, facts)
	if os.Geteuid() != 0 {
		return unprivileged(spec, chosen, wanted)
	}
	// Like that of Landlock: without it the service is as confined as with it.
	_ = launch.RecordProfile(ctx, filepath.Join(cfg.RuntimeDir, profilesDir), service, chosen, wanted)
	return spec, nil
}

// choosePgpool: the watchdog's heartbeat is sent by UDP. Without settings nothing says
// that there is none.
func choosePgpool(facts serverFacts, auto bool, choose func(feature, because string)) {
	s, set := facts.settings["use_watchdog"]
	switch {
	case !auto:
	case facts.settings == nil:
		choose(featureUDP, "auto: pgpool's settings are not known")
	case set && !s.off():
		choose(featureUDP, "auto: use_watchdog is on ("+s.where+")")
	}
}

// questionFlag has postgres print a setting, and end: postgres(1).
const questionFlag = "-C"

// questionSpec runs a service's program to have it say what a setting is, as confined as the service is. It
// is no start of the service: it has no record and no control group, and is over in milliseconds.
func questionSpec(ctx context.Context, cfg config.Config, service, setting string) (launch.Spec, error) {
	spec, svc, _, err := startSpec(ctx, cfg, service)
	if err == nil && !isPostgres(svc) {
		err = fmt.Errorf("service %s cannot be asked for a setting: its program is not postgres", service)
	}
	spec.Cgroup.Mode = launch.CgroupOff
	spec.Command = slices.Concat(spec.Command, []string{questionFlag, setting})
	return spec, err
}

func startSpec(ctx context.Context, cfg config.Config, service string) (spec launch.Spec, svc config.Service, facts serverFacts, err error) {
	spec, err = serviceSpec(cfg, service, func(s config.Service) serverFacts {
		svc, facts = s, readServerFacts(ctx, s)
		return facts
	})
	if err == nil && isPostgres(svc) && !slices.Contains(spec.Seccomp.Features(), featureJIT) && !otherProgram(spec.Command) {
		spec.Command = slices.Concat(spec.Command, []string{"-c", "jit_provider=" + noProvider})
	}
	return spec, svc, facts, err
}
