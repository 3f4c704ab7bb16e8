package testbed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// The hosts of an instance and its neighbourhood. Nodes are those that the peer list names.
const (
	pgCount, poolCount = 2, 3

	SiblingHost  = "sibling"  // another tenant on the nodes' own subnet
	AppHost      = "app"      // a client of pgpool
	ControlHost  = "control"  // the control plane; also the resolver, so that the network dns has somebody in it
	MetadataHost = "metadata" // the cloud's metadata service
)

// instanceHosts is the topology: an instance's nodes share a subnet with a sibling tenant, the others are behind the router.
var instanceHosts = []HostSpec{
	{Name: "pg-0", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64"}},
	{Name: "pg-1", Addresses: []string{"10.20.1.11/24", "fd00:20:1::11/64"}},
	{Name: "pool-0", Addresses: []string{"10.20.1.20/24", "fd00:20:1::20/64"}},
	{Name: "pool-1", Addresses: []string{"10.20.1.21/24", "fd00:20:1::21/64"}},
	{Name: "pool-2", Addresses: []string{"10.20.1.22/24", "fd00:20:1::22/64"}},
	{Name: SiblingHost, Addresses: []string{"10.20.1.66/24", "fd00:20:1::66/64"}},
	{Name: AppHost, Addresses: []string{"10.50.0.5/24", "fd00:50::5/64"}},
	{Name: ControlHost, Addresses: []string{"10.0.0.5/24", "fd00:10::5/64"}},
	{Name: MetadataHost, Addresses: []string{"169.254.169.254/30", "fd00:ec2::254/64"}},
}

// InstanceSpec describes an instance. The zero value is one that runs without services, with everything else as by default.
type InstanceSpec struct {
	Name     string // of the bed; default: instance
	Services bool   // postgres and pgpool run
	// Unprotected leaves the agents stopped, and starts the services without them: the control of every experiment.
	Unprotected bool
	// WithoutLandlock lets postgres execute what it likes: for attacks that another layer is to stop.
	WithoutLandlock bool
	LoadBalance     bool              // pgpool sends reading statements to the standby as well
	Settings        map[string]string // more settings of postgresql.conf on both postgres nodes, values as written there

	// What the agents' files say; see AgentConfig.
	Backend, Interval, Scope string
	AcceptWide               []string
	Flows, Sysctl            map[string]any
	Networks                 map[string][]string // replaces networks of the peer list, by name
}

// Instance is a tenant's five VMs with a pghardend on each, and the hosts around them. It goes away with its bed.
type Instance struct {
	Bed      *Bed
	Postgres []*Cluster // on pg-0 and pg-1; nil without services
	Pools    []*Pgpool  // on pool-0, pool-1, pool-2; nil without services

	spec   InstanceSpec
	agents map[string]*Agent
	groups []string // of the services' user

	mu      sync.Mutex
	primary int // index in Postgres
	peers   Peers
}

// NewInstance makes the bed, the clusters and the agents' files, and starts what the spec says. It does not wait until all
// of it is ready: see AwaitReady. The instance is closed when ctx is done.
func NewInstance(ctx context.Context, spec InstanceSpec) (*Instance, error) {
	if spec.Name == "" {
		spec.Name = "instance"
	}
	bed, err := New(ctx, spec.Name, instanceHosts)
	if err != nil {
		return nil, err
	}
	in := &Instance{Bed: bed, spec: spec, agents: map[string]*Agent{}}
	if err := in.build(ctx); err != nil {
		return nil, fmt.Errorf("cannot make instance %s: %w", spec.Name, errors.Join(err, in.Close())) //nolint:contextcheck // removes even if ctx is done
	}
	return in, nil
}

// Close ends and removes everything.
func (in *Instance) Close() error { return in.Bed.Close() }

// Host returns a host of the bed by name; nil if there is none.
func (in *Instance) Host(name string) *Host { return in.Bed.Host(name) }

// Hosts lists all hosts: the five nodes first, then the neighbourhood.
func (in *Instance) Hosts() []*Host { return slices.Clone(in.Bed.hosts) }

// Nodes lists the instance's five VMs: pg-0, pg-1, pool-0, pool-1, pool-2.
func (in *Instance) Nodes() []*Host { return slices.Clone(in.Bed.hosts[:pgCount+poolCount]) }

// PgNodes lists pg-0 and pg-1.
func (in *Instance) PgNodes() []*Host { return slices.Clone(in.Bed.hosts[:pgCount]) }

// PoolNodes lists pool-0, pool-1 and pool-2.
func (in *Instance) PoolNodes() []*Host {
	return slices.Clone(in.Bed.hosts[pgCount : pgCount+poolCount])
}

// Sibling is a VM of another tenant, on the nodes' subnet.
func (in *Instance) Sibling() *Host { return in.Host(SiblingHost) }

// App is a client of pgpool, in the network applications.
func (in *Instance) App() *Host { return in.Host(AppHost) }

// Control is in the network control_plane.
func (in *Instance) Control() *Host { return in.Host(ControlHost) }

// Metadata has the addresses of the cloud's metadata service.
func (in *Instance) Metadata() *Host { return in.Host(MetadataHost) }

// Agent returns the agent of a node; nil if there is no node of the name.
func (in *Instance) Agent(node string) *Agent { return in.agents[node] }

// Agents lists the agents in the order of Nodes.
func (in *Instance) Agents() []*Agent {
	list := make([]*Agent, 0, len(in.agents))
	for _, h := range in.Nodes() {
		list = append(list, in.agents[h.name])
	}
	return list
}

// Primary returns the cluster that takes writes, and its host, as far as Failover knows.
func (in *Instance) Primary() (*Cluster, *Host) { return in.postgres(0) }

// Standby returns the other one.
func (in *Instance) Standby() (*Cluster, *Host) { return in.postgres(1) }

func (in *Instance) postgres(role int) (*Cluster, *Host) {
	in.mu.Lock()
	defer in.mu.Unlock()
	i := (in.primary + role) % pgCount
	if in.Postgres == nil {
		return nil, in.Bed.hosts[i]
	}
	return in.Postgres[i], in.Bed.hosts[i]
}

// Peers returns a copy of the peer list that was written last.
func (in *Instance) Peers() Peers {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.peers.Clone()
}

// WritePeers replaces the peer list on every node.
func (in *Instance) WritePeers(p Peers) error {
	var errs []error
	for _, a := range in.Agents() {
		errs = append(errs, a.WritePeers(p))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.peers = p.Clone()
	return nil
}

// Config returns what a node's two files said at first, to be changed and written with Agent.WriteConfig.
func (in *Instance) Config(node string) AgentConfig {
	cfg := AgentConfig{
		Backend: in.spec.Backend, Interval: in.spec.Interval, Scope: in.spec.Scope, AcceptWide: slices.Clone(in.spec.AcceptWide),
		Flows: maps.Clone(in.spec.Flows), Sysctl: maps.Clone(in.spec.Sysctl), Peers: in.Peers(),
	}
	if name, s, ok := in.service(node); ok {
		cfg.Services = map[string]Service{name: s}
	}
	return cfg
}

// service describes what runs on a node by its agent; false if nothing does.
func (in *Instance) service(node string) (name string, s Service, ok bool) {
	i := slices.IndexFunc(in.Bed.hosts, func(h *Host) bool { return h.name == node })
	switch {
	case in.Postgres == nil || i < 0 || i >= pgCount+poolCount:
		return "", Service{}, false
	case i < pgCount:
		name, s = "postgres", ServiceOf(in.Postgres[i])
		if in.spec.WithoutLandlock {
			s.Landlock = map[string]any{"mode": "off"}
		}
	default:
		name, s = "pgpool", PoolServiceOf(in.Pools[i-pgCount])
	}
	s.Groups = in.groups // those that the user is in have to be named
	return name, s, true
}

// firstPeers is the peer list that an instance starts with.
func (in *Instance) firstPeers() Peers {
	p := Peers{Instance: in.spec.Name, Networks: map[string][]string{
		"control_plane": {"10.0.0.0/24", "fd00:10::/64"},
		"applications":  {"10.50.0.0/24", "fd00:50::/64"},
		"dns":           {"10.0.0.5/32", "fd00:10::5/128"},
		"siblings":      {"10.20.1.0/24", "fd00:20:1::/64"},
	}}
	for i, h := range in.Nodes() {
		role := "postgres"
		if i >= pgCount {
			role = "pgpool"
		}
		p.Nodes = append(p.Nodes, PeerOf(h, role))
	}
	maps.Copy(p.Networks, in.spec.Networks)
	return p
}

func (in *Instance) build(ctx context.Context) error {
	in.peers = in.firstPeers()
	if in.spec.Services {
		if err := in.makeServices(ctx); err != nil {
			return err
		}
	}
	for _, h := range in.Nodes() {
		a, err := NewAgent(ctx, h, in.Config(h.name))
		if err != nil {
			return err
		}
		in.agents[h.name] = a
	}
	if in.spec.Unprotected {
		return in.startServices(ctx)
	}
	return in.StartAgents()
}

// StartAgents starts the agents that do not run, and with them their services, without waiting for either.
func (in *Instance) StartAgents() error {
	for _, a := range in.Agents() {
		if a.daemon().running() {
			continue
		}
		if err := a.Start(); err != nil {
			return err
		}
	}
	return nil
}

// StopAgents ends the agents that run; their services and rules stay.
func (in *Instance) StopAgents(ctx context.Context) error {
	var errs []error
	for _, a := range in.Agents() {
		if !a.daemon().running() {
			continue
		}
		code, err := a.Stop(ctx)
		if err == nil && code != 0 {
			err = a.failed("stop", fmt.Errorf("it ended with exit code %d", code))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
