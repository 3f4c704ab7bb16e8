package config

import (
	"bytes"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"
)

// What holds for a key that is not in the file.
const (
	defaultPeersFile    = "peers.yaml"
	DefaultRuntimeDir   = "/run/pghardend"
	DefaultStateDir     = "/var/lib/pghardend"
	defaultBackend      = "auto"
	defaultInterval     = time.Second
	defaultFull         = 30 * time.Second
	defaultStartTimeout = time.Minute
	defaultStopTimeout  = time.Minute
)

// Unlimited is the value of a limit that is none (RLIM_INFINITY).
const Unlimited = math.MaxUint64

// Config is what one node runs: pghardend.yaml with every default filled in.
type Config struct {
	File       string // the file it was read from, for messages
	Node       string // this node's name in the peer list; default: the host name up to its first dot, in lower case
	PeersFile  string // a relative one is relative to File's directory; default peers.yaml
	RuntimeDir string // absolute; default /run/pghardend
	StateDir   string // absolute; default /var/lib/pghardend
	Firewall   Firewall
	Flows      map[string]FlowOverride // by row; may be nil
	Sysctl     Sysctl
	Reconcile  Reconcile
	Metrics    Metrics
	Agent      AgentSettings
	Denials    Denials
	SELinux    SELinux
	Services   []Service // sorted by name; may be empty

	lines lineIndex
}

// Firewall chooses how and what to filter.
type Firewall struct {
	Backend    string   // auto, nft or legacy; default auto
	Scope      string   // ScopeHost or ScopeSiblings; default host
	AcceptWide []string `mapstructure:"accept_wide"` // networks that CheckChange does not find too wide
}

// What Firewall.Scope says about traffic that no flow allows.
const (
	ScopeHost     = "host"     // is dropped
	ScopeSiblings = "siblings" // is dropped if it is with the network siblings, else left to the host's own firewall
)

// Reconcile says how often the kernel is compared with what is wanted.
type Reconcile struct {
	Interval time.Duration // of the cheap looks; 100ms to 60s; default 1s
	Full     time.Duration // of those that read everything; 1s to 10m; default 30s
}

// Service is one confined process tree.
type Service struct {
	Name         string           // [a-z][a-z0-9-]{0,31}
	Profile      string           // name of a seccomp profile; whether there is one is not checked here
	User         string           // a name or a decimal uid
	Groups       []string         // supplementary groups, names or decimal gids; default none
	Command      []string         // an absolute path and its arguments
	DataDir      string           // data_dir, else what -D or --pgdata of Command says, else empty
	Limits       map[string]Limit // by lower-case RLIMIT name without prefix
	Capabilities []string         // not checked here beyond their shape
	Environment  []string         // NAME=value, names unique
	OOMScoreAdj  *int             // -1000 to 1000, nil: as inherited
	StartTimeout time.Duration    // 100ms to 24h; default 60s
	StopTimeout  time.Duration    // 100ms to 24h; default 60s

	// MaxConnections is how many clients the service takes, 1 to 262143; 0: the
	// agent asks the program. The limits of service flows are derived from it.
	MaxConnections int
	// Helpers are the absolute paths of other programs that it may run.
	Helpers  []string
	Landlock Landlock
	Mounts   Mounts
	Cgroup   Cgroup
	SELinux  ServiceSELinux
	// Features are what the seccomp profile is to have beyond its base, FeaturesAuto
	// among them or alone; whether there are such is not checked here. Default FeaturesAuto.
	Features []string
	// Mode is ModeEnforce (default) or ModeComplain, which ends at ComplainUntil
	// for services that start later; zero: never.
	Mode          string
	ComplainUntil time.Time
	// External: something else starts it through `pghardend exec`, such as a unit of its
	// own or Patroni; the agent watches it. Default: the agent starts it.
	External bool
}

// Limit is a resource limit in the unit of setrlimit(2) for its resource.
type Limit struct{ Soft, Hard uint64 }

// Where returns "file:line" of a dotted key such as
// services.postgres.limits.nofile, or of its nearest parent that the file has.
func (c Config) Where(key string) string { return c.lines.where(c.File, key) }

// ParseConfig reads a configuration. file is used in messages and to resolve a
// relative peers_file, so it should be absolute; hostname gives the node's name
// if the file does not.
func ParseConfig(file string, data []byte, hostname string) (Config, error) {
	w, root := newWalker(file, data)
	if root != nil {
		r := configReader{walker: w, dataDirs: map[string]string{}}
		r.file(root)
		r.checkHostname(hostname)
	}
	if len(w.problems) > 0 {
		return Config{}, joined(w.problems)
	}
	raw, err := decodeConfig(data)
	if err != nil {
		return Config{}, &Error{File: file, Line: 1, Problem: "cannot decode the file: " + err.Error(), Fix: "this is a bug, please report it with the file"}
	}
	c := raw.config(file, hostname)
	c.lines = w.lines
	return c, nil
}

// configReader refuses while it walks. dataDirs maps a data directory to the
// key of the first service that has it.
type configReader struct {
	*walker
	dataDirs map[string]string
}

const (
	minInterval = 100 * time.Millisecond
	maxInterval = time.Minute
	minFull     = time.Second
	maxFull     = 10 * time.Minute
)

func (r *configReader) file(root *yaml.Node) {
	r.mapping("", root, []field{
		{"version", true, "version: 1", r.version},
		{"node", false, "", func(key string, n *yaml.Node) { r.matching(key, n, nodeLabel, nodeLabelText, "pg-0") }},
		{"peers_file", false, "", r.peersFile},
		{"runtime_dir", false, "", func(key string, n *yaml.Node) { r.path(key, n, DefaultRuntimeDir) }},
		{"state_dir", false, "", func(key string, n *yaml.Node) { r.path(key, n, DefaultStateDir) }},
		{"firewall", false, "", r.firewall},
		{"flows", false, "", r.flows},
		{"sysctl", false, "", r.sysctl},
		{"reconcile", false, "", r.reconcile},
		{"metrics", false, "", r.metrics},
		{"agent", false, "", r.agent},
		{"denials", false, "", r.denials},
		{"selinux", false, "", r.selinux},
		{"services", false, "", r.services},
	})
}

// checkHostname is for a file without the key node.
func (r *configReader) checkHostname(hostname string) {
	if _, given := r.lines["node"]; !given && !nodeLabel.matches(nodeFromHostname(hostname)) {
		r.report("node", "missing, and the host name "+quote(hostname)+" is not "+nodeLabelText, "add `node: pg-0` with this node's name in the peer list")
	}
}

func nodeFromHostname(hostname string) string {
	label, _, _ := strings.Cut(strings.ToLower(hostname), ".")
	return label
}

func (r *configReader) peersFile(key string, n *yaml.Node) {
	s, ok := r.text(key, n, defaultPeersFile)
	if ok && (s == "" || strings.HasSuffix(s, "/")) {
		r.report(key, quote(s)+" is not the path of a file", "write `"+key+": "+defaultPeersFile+"`")
	}
}

func (r *configReader) firewall(key string, n *yaml.Node) {
	r.mapping(key, n, []field{
		{"backend", false, "backend: auto", func(key string, n *yaml.Node) { r.oneOf(key, n, []string{defaultBackend, "nft", "legacy"}) }},
		{"scope", false, "", func(key string, n *yaml.Node) { r.oneOf(key, n, []string{ScopeHost, ScopeSiblings}) }},
		{"accept_wide", false, "", func(key string, n *yaml.Node) { r.unique(key, n, "applications", r.wideNetwork) }},
	})
}

func (r *configReader) reconcile(key string, n *yaml.Node) {
	r.mapping(key, n, []field{
		{"interval", false, "interval: 1s", func(key string, n *yaml.Node) { r.duration(key, n, minInterval, maxInterval, "1s") }},
		{"full", false, "", func(key string, n *yaml.Node) { r.duration(key, n, minFull, maxFull, "30s") }},
	})
}

func (r *configReader) wideNetwork(key string, n *yaml.Node) string {
	s, ok := r.networkRef(key, n, "applications")
	if ok && slices.Contains(notInFlows, s) {
		r.report(key, s+" may be as wide as it is", "remove it from the list")
	}
	return s
}

// path returns the clean form of an absolute path other than /, else nothing. A path through
// .. is refused: what it means depends on symlinks that others may own.
func (r *configReader) path(key string, n *yaml.Node, example string) string {
	s, ok := r.text(key, n, example)
	if !ok {
		return ""
	}
	if problem := pathProblem(s); problem != "" {
		r.report(key, problem, "write an absolute path such as "+example)
		return ""
	}
	return filepath.Clean(s)
}

func pathProblem(s string) string {
	switch {
	case s == "":
		return "the path is empty"
	case !filepath.IsAbs(s):
		return quote(s) + " is a relative path"
	case slices.Contains(strings.Split(s, "/"), ".."):
		return quote(s) + " leads through .."
	case filepath.Clean(s) == "/":
		return quote(s) + " is the root directory"
	}
	return ""
}

// duration refuses a time without unit, which YAML would hand over as a number.
func (r *configReader) duration(key string, n *yaml.Node, least, most time.Duration, example string) {
	fix := "write a number with a unit (ms, s, m, h) such as " + example
	if n.Kind == yaml.ScalarNode && (n.Tag == "!!int" || n.Tag == "!!float") {
		r.report(key, clip(n.Value)+" has no unit", fix)
		return
	}
	s, ok := r.text(key, n, example)
	if !ok {
		return
	}
	switch d, err := time.ParseDuration(s); {
	case err != nil:
		r.report(key, quote(s)+" is not a duration", fix)
	case d < least || d > most:
		r.report(key, quote(s)+" is out of range", "write a duration from "+shortDuration(least)+" to "+shortDuration(most))
	}
}

// shortDuration writes 24h, not 24h0m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// rawConfig and rawService are the shape of the file for viper.
type rawConfig struct {
	Version    int                     `mapstructure:"version"`
	Node       string                  `mapstructure:"node"`
	PeersFile  string                  `mapstructure:"peers_file"`
	RuntimeDir string                  `mapstructure:"runtime_dir"`
	StateDir   string                  `mapstructure:"state_dir"`
	Firewall   Firewall                `mapstructure:"firewall"`
	Flows      map[string]FlowOverride `mapstructure:"flows"`
	Sysctl     Sysctl                  `mapstructure:"sysctl"`
	Reconcile  Reconcile               `mapstructure:"reconcile"`
	Metrics    Metrics                 `mapstructure:"metrics"`
	Agent      rawAgent                `mapstructure:"agent"`
	Denials    Denials                 `mapstructure:"denials"`
	SELinux    rawSELinux              `mapstructure:"selinux"`
	Services   map[string]rawService   `mapstructure:"services"`
}

type rawService struct {
	Profile        string            `mapstructure:"profile"`
	User           string            `mapstructure:"user"`
	Groups         []string          `mapstructure:"groups"`
	Command        []string          `mapstructure:"command"`
	DataDir        string            `mapstructure:"data_dir"`
	Limits         map[string]any    `mapstructure:"limits"`
	Capabilities   []string          `mapstructure:"capabilities"`
	Environment    []string          `mapstructure:"environment"`
	OOMScoreAdj    *int              `mapstructure:"oom_score_adj"`
	StartTimeout   time.Duration     `mapstructure:"start_timeout"`
	StopTimeout    time.Duration     `mapstructure:"stop_timeout"`
	MaxConnections int               `mapstructure:"max_connections"`
	Helpers        []string          `mapstructure:"helpers"`
	Landlock       rawLandlock       `mapstructure:"landlock"`
	Mounts         rawMounts         `mapstructure:"mounts"`
	Cgroup         rawCgroup         `mapstructure:"cgroup"`
	SELinux        rawServiceSELinux `mapstructure:"selinux"`
	Features       any               `mapstructure:"features"`
	Mode           string            `mapstructure:"mode"`
	ComplainUntil  string            `mapstructure:"complain_until"`
	Start          string            `mapstructure:"start"`
}

// decodeConfig decodes a file that the walk has passed: known keys only, in
// lower case and without dots, so viper's folding and splitting change nothing.
func decodeConfig(data []byte) (rawConfig, error) {
	v := viper.New()
	v.SetConfigType("yaml")
	v.SetDefault("peers_file", defaultPeersFile)
	v.SetDefault("runtime_dir", DefaultRuntimeDir)
	v.SetDefault("state_dir", DefaultStateDir)
	v.SetDefault("firewall.backend", defaultBackend)
	v.SetDefault("firewall.scope", ScopeHost)
	v.SetDefault("sysctl.manage", true)
	v.SetDefault("denials.trace", true)
	v.SetDefault("reconcile.interval", defaultInterval)
	v.SetDefault("reconcile.full", defaultFull)
	var raw rawConfig
	if err := v.ReadConfig(bytes.NewReader(data)); err != nil {
		return raw, err
	}
	return raw, v.UnmarshalExact(&raw)
}

// config resolves what depends on other values. It cannot fail: the walk has
// refused everything that it could not use.
func (raw rawConfig) config(file, hostname string) Config {
	c := Config{
		File: file, Node: raw.Node, PeersFile: raw.PeersFile,
		RuntimeDir: filepath.Clean(raw.RuntimeDir), StateDir: filepath.Clean(raw.StateDir),
		Firewall: raw.Firewall, Flows: raw.Flows, Sysctl: raw.Sysctl, Reconcile: raw.Reconcile, Metrics: raw.Metrics, Agent: raw.Agent.settings(),
		Denials: raw.Denials, SELinux: raw.SELinux.settings(),
	}
	if c.Node == "" {
		c.Node = nodeFromHostname(hostname)
	}
	if !filepath.IsAbs(c.PeersFile) {
		c.PeersFile = filepath.Join(filepath.Dir(file), c.PeersFile)
	}
	for _, name := range slices.Sorted(maps.Keys(raw.Services)) {
		c.Services = append(c.Services, raw.Services[name].service(name, c.SELinux))
	}
	return c
}

func (raw rawService) service(name string, all SELinux) Service {
	s := Service{
		Name: name, Profile: raw.Profile, User: raw.User, Groups: raw.Groups, Command: raw.Command,
		DataDir: raw.DataDir, Capabilities: raw.Capabilities, Environment: raw.Environment,
		OOMScoreAdj: raw.OOMScoreAdj, StartTimeout: raw.StartTimeout, StopTimeout: raw.StopTimeout, MaxConnections: raw.MaxConnections,
		Limits: make(map[string]Limit, len(raw.Limits)), Landlock: raw.Landlock.landlock(), Mounts: raw.Mounts.mounts(),
		Cgroup: raw.Cgroup.cgroup(defaultServiceWeight), SELinux: raw.SELinux.within(all), Features: featuresOf(raw.Features),
		Mode: orElse(raw.Mode, ModeEnforce), ComplainUntil: timeOf(raw.ComplainUntil),
		External: raw.Start == startExternal,
	}
	for _, helper := range raw.Helpers {
		s.Helpers = append(s.Helpers, filepath.Clean(helper))
	}
	for resource, value := range raw.Limits {
		s.Limits[resource] = limitOf(value)
	}
	if s.DataDir == "" {
		s.DataDir = dataDirOf(s.Command)
	}
	if s.DataDir != "" {
		s.DataDir = filepath.Clean(s.DataDir)
	}
	if s.StartTimeout == 0 {
		s.StartTimeout = defaultStartTimeout
	}
	if s.StopTimeout == 0 {
		s.StopTimeout = defaultStopTimeout
	}
	return s
}
