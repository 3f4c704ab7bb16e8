package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
	"github.com/pghardend/pghardend/pkg/limits"
	"github.com/pghardend/pghardend/pkg/sandbox"
	"github.com/pghardend/pghardend/pkg/sysctl"
	"github.com/pghardend/pghardend/policies"
)

// Desired is everything that this node should be.
type Desired struct {
	Config   config.Config
	Peers    config.Peers
	Self     config.Node
	Extra    Extra         // what it was built from beside the files
	Firewall firewall.Spec // what Rules were rendered from
	Rules    firewall.Ruleset
	Sysctls  []sysctl.Setting
	Services []launch.Spec // sorted by name

	made *buildMark
}

// A buildMark tells one build from another by its address, and so needs one.
type buildMark struct{ _ byte }

// Extra is what Build needs beside the two files.
type Extra struct {
	Facts    Facts
	Openings []firewall.Opening // those in force
}

// Build derives the desired state from the two files, what the services say and
// the openings. It is pure: what must be asked of the machine, such as a user's
// id, is asked by the launch stage.
func Build(cfg config.Config, peers config.Peers, extra Extra) (Desired, error) {
	if err := config.Validate(cfg, peers); err != nil {
		return Desired{}, err
	}
	if err := checkDirs(cfg); err != nil {
		return Desired{}, err
	}
	self := peers.Nodes[slices.IndexFunc(peers.Nodes, func(n config.Node) bool { return n.Name == cfg.Node })]
	spec, err := firewallSpec(cfg, peers, self, extra)
	if err != nil {
		return Desired{}, err
	}
	rules, err := firewall.Render(spec)
	if err != nil {
		return Desired{}, fmt.Errorf("%s: %w", peers.File, err)
	}
	settings, err := sysctls(cfg)
	if err != nil {
		return Desired{}, err
	}
	d := Desired{Config: cfg, Peers: peers, Self: self, Extra: extra, Firewall: spec, Rules: rules, Sysctls: settings, made: &buildMark{}}
	for _, svc := range cfg.Services {
		spec, err := ServiceSpec(cfg, svc.Name)
		if err != nil {
			return Desired{}, err
		}
		boundTasks(&spec.Cgroup, cfg, svc.Name, extra.Facts)
		d.Services = append(d.Services, spec)
	}
	return d, nil
}

// checkDirs keeps our copies of the accepted files off the files themselves.
func checkDirs(cfg config.Config) error {
	for _, own := range []struct{ key, dir string }{
		{"runtime_dir", cfg.RuntimeDir},
		{"state_dir", path.Join(cfg.StateDir, lastGoodDir)},
	} {
		if own.dir == path.Dir(cfg.File) || own.dir == path.Dir(cfg.PeersFile) {
			return fmt.Errorf("%s: %s: copies of the configuration are kept in %s, where the files themselves are; choose another directory",
				cfg.Where(own.key), own.key, own.dir)
		}
	}
	return nil
}

// sysctls are the built-in network sysctls with what the configuration says
// about them.
func sysctls(cfg config.Config) ([]sysctl.Setting, error) {
	const file = "sysctl/network.conf"
	data, err := fs.ReadFile(policies.FS, file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the built-in sysctls: %w", err)
	}
	base, err := sysctl.Parse(file, data)
	if err != nil {
		return nil, err
	}
	var set []sysctl.Setting
	var errs []error
	report := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", cfg.Where(key), key, err))
		}
	}
	for i, text := range cfg.Sysctl.Set {
		s, err := sysctl.ParseSetting(text)
		report(fmt.Sprintf("sysctl.set[%d]", i), err)
		set = append(set, s)
	}
	for i, text := range cfg.Sysctl.Leave {
		_, err := sysctl.ParseKey(text)
		report(fmt.Sprintf("sysctl.leave[%d]", i), err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return sysctl.Merge(base, set, cfg.Sysctl.Leave), nil
}

// ServiceSpec is the launch stage's input for one configured service, as far as it
// is known without a look at the machine: the seccomp profile may get more features.
func ServiceSpec(cfg config.Config, name string) (launch.Spec, error) {
	return serviceSpec(cfg, name, func(config.Service) serverFacts { return serverFacts{} })
}

func serviceSpec(cfg config.Config, name string, ask func(config.Service) serverFacts) (launch.Spec, error) {
	i := slices.IndexFunc(cfg.Services, func(s config.Service) bool { return s.Name == name })
	if i < 0 {
		return launch.Spec{}, fmt.Errorf("%s: there is no service %q; services: %s", cfg.Where("services"), name, serviceNames(cfg))
	}
	svc := cfg.Services[i]
	key := "services." + name
	profile, err := serviceProfile(cfg, svc, ask(svc))
	if err != nil {
		return launch.Spec{}, err
	}
	caps, err := sandbox.ParseCapabilities(svc.Capabilities)
	if err != nil {
		return launch.Spec{}, fmt.Errorf("%s: %s.capabilities: %w", cfg.Where(key+".capabilities"), key, err)
	}
	set := limits.Set{}
	for resource, l := range svc.Limits {
		set[resource] = limits.Limit{Soft: l.Soft, Hard: l.Hard}
	}
	if err := set.Validate(); err != nil {
		return launch.Spec{}, fmt.Errorf("%s: %s.limits: %w", cfg.Where(key+".limits"), key, err)
	}
	landlock, err := landlockSpec(cfg, svc)
	if err != nil {
		return launch.Spec{}, err
	}
	mounts, err := mountsSpec(cfg, svc)
	if err != nil {
		return launch.Spec{}, err
	}
	label, err := selinuxSpec(cfg, svc)
	if err != nil {
		return launch.Spec{}, err
	}
	return launch.Spec{
		Service:      name,
		User:         svc.User,
		Groups:       svc.Groups,
		Command:      svc.Command,
		Helpers:      svc.Helpers,
		DataDir:      svc.DataDir,
		Limits:       set,
		Capabilities: caps,
		Seccomp:      profile,
		Environment:  slices.Concat(profileEnvironment(svc.Profile), svc.Environment),
		OOMScoreAdj:  svc.OOMScoreAdj,
		Landlock:     landlock,
		Mounts:       mounts,
		SELinux:      label,
		Cgroup:       cgroupSpec(cfg, svc),
		Complain:     launch.Complain{On: svc.Mode == config.ModeComplain, Until: svc.ComplainUntil},
		LogDenied:    !cfg.Denials.Trace,
		RecordDir:    filepath.Join(cfg.RuntimeDir, launch.RecordsDir),
	}, nil
}

func serviceNames(cfg config.Config) string {
	names := make([]string, len(cfg.Services))
	for i, s := range cfg.Services {
		names[i] = s.Name
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// profileEnvironment: the postmaster may be exempt from the OOM killer while
// its children are not, PostgreSQL manual, "Linux Memory Overcommit".
func profileEnvironment(profile string) []string {
	if profile == config.RolePostgres {
		return []string{"PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj", "PG_OOM_ADJUST_VALUE=0"}
	}
	return nil
}
