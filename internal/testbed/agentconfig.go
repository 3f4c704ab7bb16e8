package testbed

import (
	"fmt"
	"maps"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// AgentConfig is what the two files of an agent say. Whatever is empty is left out of the files.
type AgentConfig struct {
	Node     string // default: not written, so that it is the host's name
	Backend  string // firewall.backend: auto, nft or legacy
	Interval string // reconcile.interval, such as "1s"
	Full     string // reconcile.full, the same
	Scope    string // firewall.scope: host or siblings

	AcceptWide []string       // firewall.accept_wide
	Flows      map[string]any // rows by name, as written in the file
	Sysctl     map[string]any // manage, set, leave
	Agent      map[string]any // cgroup (default: off), oom_score_adj
	Services   map[string]Service
	Peers      Peers
}

// Service is one service in pghardend.yaml.
type Service struct {
	Profile      string         `yaml:"profile,omitempty"`
	User         string         `yaml:"user,omitempty"`
	Groups       []string       `yaml:"groups,omitempty"`
	Command      []string       `yaml:"command,omitempty,flow"`
	DataDir      string         `yaml:"data_dir,omitempty"`
	Limits       map[string]any `yaml:"limits,omitempty"`
	Capabilities []string       `yaml:"capabilities,omitempty"`
	Environment  []string       `yaml:"environment,omitempty"`
	OOMScoreAdj  *int           `yaml:"oom_score_adj,omitempty"`
	Helpers      []string       `yaml:"helpers,omitempty"`
	Features     []string       `yaml:"features,omitempty,flow"`
	Landlock     map[string]any `yaml:"landlock,omitempty"`
	Mounts       map[string]any `yaml:"mounts,omitempty"`
	Cgroup       map[string]any `yaml:"cgroup,omitempty"` // default: off, since VMs share those of the machine
	SELinux      map[string]any `yaml:"selinux,omitempty"`

	Mode          string `yaml:"mode,omitempty"`
	ComplainUntil string `yaml:"complain_until,omitempty"`

	MaxConnections int `yaml:"max_connections,omitempty"`

	StartTimeout string `yaml:"start_timeout,omitempty"`
	StopTimeout  string `yaml:"stop_timeout,omitempty"`
}

// Peers is peers.yaml.
type Peers struct {
	Instance string              `yaml:"instance"`
	Nodes    []Peer              `yaml:"nodes"`
	Networks map[string][]string `yaml:"networks,omitempty"`
}

// Peer is one node in peers.yaml.
type Peer struct {
	Name      string   `yaml:"name"`
	Role      string   `yaml:"role"`
	Addresses []string `yaml:"addresses,flow"`
}

// PeerOf describes a host as a node with all of its addresses.
func PeerOf(h *Host, role string) Peer {
	p := Peer{Name: h.name, Role: role}
	for _, a := range h.Addresses() {
		p.Addresses = append(p.Addresses, a.String())
	}
	return p
}

// ServiceOf describes a cluster as a service of the postgres profile.
func ServiceOf(c *Cluster) Service {
	return Service{Profile: "postgres", User: c.User.Username, Command: c.Command(), Landlock: map[string]any{"write": []string{c.Socket}}}
}

// YAML renders peers.yaml. Pure.
func (p Peers) YAML() (string, error) {
	return renderYAML(struct {
		Version int `yaml:"version"`
		Peers   `yaml:",inline"`
	}{1, p})
}

// yaml renders pghardend.yaml for an agent whose files are in dir. Pure.
func (c AgentConfig) yaml(dir string) (string, error) {
	type section map[string]any
	file := struct {
		Version   int                `yaml:"version"`
		Node      string             `yaml:"node,omitempty"`
		PeersFile string             `yaml:"peers_file"`
		Runtime   string             `yaml:"runtime_dir"`
		State     string             `yaml:"state_dir"`
		Firewall  section            `yaml:"firewall,omitempty"`
		Flows     section            `yaml:"flows,omitempty"`
		Sysctl    section            `yaml:"sysctl,omitempty"`
		Reconcile section            `yaml:"reconcile,omitempty"`
		Agent     section            `yaml:"agent,omitempty"`
		Services  map[string]Service `yaml:"services,omitempty"`
	}{Version: 1, Node: c.Node, PeersFile: peersFile, Runtime: filepath.Join(dir, "run"), State: filepath.Join(dir, "state"),
		Firewall: section{}, Reconcile: section{}, Flows: c.Flows, Sysctl: c.Sysctl, Agent: c.Agent, Services: c.Services}
	off := map[string]any{"mode": "off"}
	if _, ok := file.Agent["cgroup"]; !ok {
		file.Agent = maps.Clone(file.Agent)
		if file.Agent == nil {
			file.Agent = section{}
		}
		file.Agent["cgroup"] = off
	}
	file.Services = maps.Clone(file.Services)
	for name, s := range file.Services {
		if s.Cgroup == nil {
			s.Cgroup = off
			file.Services[name] = s
		}
	}
	if c.Backend != "" {
		file.Firewall["backend"] = c.Backend
	}
	if c.Scope != "" {
		file.Firewall["scope"] = c.Scope
	}
	if len(c.AcceptWide) > 0 {
		file.Firewall["accept_wide"] = c.AcceptWide
	}
	for key, value := range map[string]string{"interval": c.Interval, "full": c.Full} {
		if value != "" {
			file.Reconcile[key] = value
		}
	}
	return renderYAML(file)
}

func renderYAML(v any) (string, error) {
	out, err := yaml.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("cannot render a configuration: %w", err)
	}
	return string(out), nil
}
