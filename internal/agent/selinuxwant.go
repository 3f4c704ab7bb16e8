package agent

import (
	"maps"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/mac"
)

// selinuxWant is what of SELinux is kept for a configuration.
type selinuxWant struct {
	domains  []string // of policies/selinux, which have to be known and to deny
	others   []string // that the configuration names, which have to deny
	module   string   // file that the domains come from
	booleans map[string]bool
	ports    []mac.PortType
	labels   []wantedLabel
}

// wantedLabel is the type and level of a file or directory. User and role of a file
// decide nothing.
type wantedLabel struct {
	what, path string
	typ, level string
	inside     bool     // what lies directly in it as well
	conf       string   // the type of files of these names in it
	names      []string // sorted
}

func (w wantedLabel) context(typ string) mac.Context {
	return mac.Context{User: "system_u", Role: "object_r", Type: typ, Level: w.level}
}

// typeOf is the type of what is called so in the directory.
func (w wantedLabel) typeOf(name string) string {
	if _, found := slices.BinarySearch(w.names, name); found {
		return w.conf
	}
	return w.typ
}

// none says whether SELinux is off for all.
func (w selinuxWant) none() bool { return len(w.domains)+len(w.others) == 0 }

// wantSELinux is pure.
func wantSELinux(d Desired) selinuxWant {
	w := selinuxWant{module: d.Config.SELinux.Module, booleans: maps.Clone(d.Config.SELinux.Booleans)}
	for i, spec := range d.Services {
		if spec.SELinux.Off() {
			continue
		}
		svc := d.Config.Services[i]
		profile, known := selinuxProfiles[svc.Profile]
		if !known || spec.SELinux.Type != profile.domain {
			w.others = append(w.others, spec.SELinux.Type)
			continue
		}
		w.domains = append(append(w.domains, profile.domain), profile.helpers...)
		w.addPorts(profile, svc)
		w.addFiles(profile, svc, spec.SELinux.Level)
	}
	if w.none() {
		return selinuxWant{}
	}
	if len(w.domains) > 0 {
		w.addOwn(d.Config)
	}
	slices.Sort(w.domains)
	w.domains = slices.Compact(w.domains)
	return w
}

// addPorts: those of the profile, and what else the configuration has the service
// listen on, with the type of the first.
func (w *selinuxWant) addPorts(profile selinuxProfile, svc config.Service) {
	ports, more := slices.Clone(profile.ports), slices.Clone(svc.Landlock.Bind)
	if port, err := strconv.ParseUint(config.Option(svc.Command, "-p", "--port"), 10, 16); err == nil && isPostgres(svc) {
		more = append(more, int(port))
	}
	for _, port := range more {
		if !slices.ContainsFunc(ports, func(p mac.PortType) bool { return p.Proto == "tcp" && p.Port == port }) {
			ports = append(ports, mac.PortType{Proto: "tcp", Port: port, Type: ports[0].Type})
		}
	}
	for _, p := range ports {
		if !slices.Contains(w.ports, p) {
			w.ports = append(w.ports, p)
		}
	}
}

func (w *selinuxWant) addFiles(profile selinuxProfile, svc config.Service, level string) {
	w.labels = append(w.labels,
		wantedLabel{what: "program of service " + svc.Name, path: svc.Command[0], typ: profile.program, level: noLevel},
		wantedLabel{what: "sockets of service " + svc.Name, path: profile.sockets, typ: selinuxSocket, level: noLevel},
	)
	if svc.DataDir != "" && profile.data != "" {
		w.labels = append(w.labels, wantedLabel{what: "data directory of service " + svc.Name, path: svc.DataDir,
			typ: profile.data, level: level, inside: true, conf: profile.conf, names: profile.names})
	}
}

// addOwn: the directory of the configuration may be one that belongs to others too.
func (w *selinuxWant) addOwn(cfg config.Config) {
	w.labels = append(w.labels,
		wantedLabel{what: "configuration", path: cfg.File, typ: selinuxConf, level: noLevel},
		wantedLabel{what: "peer list", path: cfg.PeersFile, typ: selinuxConf, level: noLevel},
		wantedLabel{what: "state_dir", path: cfg.StateDir, typ: selinuxState, level: noLevel},
		wantedLabel{what: "runtime_dir", path: cfg.RuntimeDir, typ: selinuxRuntime, level: noLevel},
		wantedLabel{what: "the agent's program", path: agentProgram, typ: selinuxAgentExec, level: noLevel},
	)
	if dir := filepath.Dir(cfg.File); dir == configDir {
		w.labels = append(w.labels, wantedLabel{what: "directory of the configuration", path: dir, typ: selinuxConf, level: noLevel})
	}
}

// Where packages install the agent and its configuration.
const (
	agentProgram = "/usr/bin/pghardend"
	configDir    = "/etc/pghardend"
)
