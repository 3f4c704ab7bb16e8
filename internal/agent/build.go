package agent

import (
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
	"github.com/pghardend/pghardend/pkg/limits"
	"github.com/pghardend/pghardend/pkg/sandbox"
	"github.com/pghardend/pghardend/policies"
)

// Desired is everything that this node should be.
type Desired struct {
	Config   config.Config
	Peers    config.Peers
	Self     config.Node
	Rules    firewall.Ruleset
	Services []launch.Spec // sorted by name
}

// Build derives the desired state from the two files. It is pure: what must be
// asked of the machine, such as a user's id, is asked by the launch stage.
func Build(cfg config.Config, peers config.Peers) (Desired, error) {
	if err := config.Validate(cfg, peers); err != nil {
		return Desired{}, err
	}
	if err := checkDirs(cfg); err != nil {
		return Desired{}, err
	}
	self := peers.Nodes[slices.IndexFunc(peers.Nodes, func(n config.Node) bool { return n.Name == cfg.Node })]
	flows, err := defaultFlows()
	if err != nil {
		return Desired{}, err
	}
	rules, err := firewall.Render(firewall.Spec{Role: self.Role, Flows: flows, Members: members(peers, self)})
	if err != nil {
		return Desired{}, fmt.Errorf("%s: %w", peers.File, err)
	}
	d := Desired{Config: cfg, Peers: peers, Self: self, Rules: rules}
	for _, svc := range cfg.Services {
		spec, err := ServiceSpec(cfg, svc.Name)
		if err != nil {
			return Desired{}, err
		}
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

func defaultFlows() ([]firewall.Flow, error) {
	const file = "network/flows.yaml"
	data, err := fs.ReadFile(policies.FS, file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the built-in flows: %w", err)
	}
	return firewall.ParseFlows(file, data)
}

// members puts every address into the sets of its role or network. This node's
// own addresses stay out: its packets to itself use the loopback interface, and
// one that claims to come from them on the wire is a lie.
func members(peers config.Peers, self config.Node) map[string][]netip.Prefix {
	m := map[string][]netip.Prefix{}
	for _, n := range peers.Nodes {
		if n.Name == self.Name {
			continue
		}
		for _, a := range n.Addresses {
			m[n.Role] = append(m[n.Role], netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for name, prefixes := range peers.Networks {
		m[name] = slices.Clone(prefixes)
	}
	return m
}

// ServiceSpec is the launch stage's input for one configured service.
func ServiceSpec(cfg config.Config, name string) (launch.Spec, error) {
	i := slices.IndexFunc(cfg.Services, func(s config.Service) bool { return s.Name == name })
	if i < 0 {
		return launch.Spec{}, fmt.Errorf("%s: there is no service %q; services: %s", cfg.Where("services"), name, serviceNames(cfg))
	}
	svc := cfg.Services[i]
	key := "services." + name
	profile, err := seccompProfile(svc.Profile)
	if err != nil {
		return launch.Spec{}, fmt.Errorf("%s: %s.profile: %w", cfg.Where(key+".profile"), key, err)
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
	return launch.Spec{
		Service:      name,
		User:         svc.User,
		Groups:       svc.Groups,
		Command:      svc.Command,
		DataDir:      svc.DataDir,
		Limits:       set,
		Capabilities: caps,
		Seccomp:      profile,
		Environment:  slices.Concat(profileEnvironment(svc.Profile), svc.Environment),
		OOMScoreAdj:  svc.OOMScoreAdj,
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

func seccompProfile(name string) (sandbox.Profile, error) {
	file := "seccomp/" + name + ".json"
	data, err := fs.ReadFile(policies.FS, file)
	if err != nil {
		return sandbox.Profile{}, fmt.Errorf("there is no profile %q; profiles: %s", name, strings.Join(profileNames(), ", "))
	}
	return sandbox.ParseProfile(file, data)
}

func profileNames() []string {
	files, err := fs.Glob(policies.FS, "seccomp/*.json")
	if err != nil {
		return nil
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(path.Base(f), ".json")
	}
	return files
}

// profileEnvironment: the postmaster may be exempt from the OOM killer while
// its children are not, PostgreSQL manual, "Linux Memory Overcommit".
func profileEnvironment(profile string) []string {
	if profile == config.RolePostgres {
		return []string{"PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj", "PG_OOM_ADJUST_VALUE=0"}
	}
	return nil
}
