package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/mac"
)

// selinuxProfile is what policies/selinux has for a kind of service.
type selinuxProfile struct {
	domain  string
	helpers []string // domains of the programs that it may start
	program string   // the type of its program
	data    string   // of the data directory and what is below
	conf    string   // of the files of confNames in it, which the server must not write to
	names   []string
	sockets string // directory of its sockets
	ports   []mac.PortType
}

// selinuxProfiles by profile; one that is missing has no domain.
var selinuxProfiles = map[string]selinuxProfile{
	config.RolePostgres: {
		domain: "pghardend_postgres_t", helpers: []string{"pghardend_postgres_helper_t"}, program: "pghardend_postgres_exec_t",
		data: "pghardend_postgres_data_t", conf: "pghardend_postgres_conf_t", names: []string{"pg_hba.conf", "pg_ident.conf", "postgresql.conf"},
		sockets: "/run/postgresql",
		ports:   basePorts,
	},
	config.RolePgpool: {
		domain: "pghardend_pgpool_t", helpers: []string{"pghardend_pgpool_helper_t"}, program: "pghardend_pgpool_exec_t",
		sockets: "/run/pgpool",
		ports: []mac.PortType{
			{Proto: "tcp", Port: 9999, Type: "pghardend_pgpool_port_t"}, {Proto: "tcp", Port: 9898, Type: "pghardend_pcp_port_t"},
			{Proto: "tcp", Port: 9000, Type: "pghardend_watchdog_port_t"}, {Proto: "udp", Port: 9694, Type: "pghardend_heartbeat_port_t"},
		},
	},
}

// Types of the agent's own files.
const (
	selinuxAgentDomain = "pghardend_t"
	selinuxAgentExec   = "pghardend_exec_t"
	selinuxConf        = "pghardend_conf_t"
	selinuxState       = "pghardend_var_lib_t"
	selinuxRuntime     = "pghardend_runtime_t"
	selinuxSocket      = "pghardend_socket_t"
	noLevel            = "s0" // of files that are no instance's
)

// selinuxSpec is the profile's domain, unless the configuration names another one.
func selinuxSpec(cfg config.Config, svc config.Service) (launch.SELinux, error) {
	s := launch.SELinux{Mode: svc.SELinux.Mode}
	if s.Off() {
		return s, nil
	}
	key := "services." + svc.Name + ".selinux"
	profile, known := selinuxProfiles[svc.Profile]
	s.Type, s.Helpers = profile.domain, profile.helpers
	if svc.SELinux.Type != "" {
		s.Type = svc.SELinux.Type
	} else if !known {
		return s, fmt.Errorf("%s: %s: the profile %q has no SELinux domain: name one in %s.type, or write mode: off", cfg.Where(key), key, svc.Profile, key)
	}
	var err error
	if s.Level, err = mac.CanonicalLevel(svc.SELinux.Level); err != nil {
		return s, fmt.Errorf("%s: %s.level: %w", cfg.Where(key+".level"), key, err)
	}
	return s, nil
}

// addSELinux shows the layer of a running service: that its processes have the
// label is among the findings, and here is whether that means anything.
func addSELinux(ctx context.Context, spec launch.Spec, pid int, s *control.Status) {
	state, err := launch.ReadSELinux(ctx, spec, pid)
	if err != nil {
		s.Reasons = append(s.Reasons, fmt.Sprintf("service %s cannot be verified: %v", spec.Service, err))
		return
	}
	at := slices.IndexFunc(s.Layers, func(l control.Layer) bool { return l.Name == launch.LayerSELinux && l.Subject == spec.Service })
	if at < 0 {
		at = len(s.Layers)
		s.Layers = append(s.Layers, control.Layer{Name: launch.LayerSELinux, Subject: spec.Service, Configured: !spec.SELinux.Off()})
	}
	l := &s.Layers[at]
	if spec.SELinux.Off() || !state.Enforced() {
		l.Enforced, l.Detail = false, state.Text()
	} else if l.Enforced {
		l.Detail = state.Text()
	}
	problems := failures(spec.Service, state.Findings(pid))
	s.Reasons = append(s.Reasons, problems...)
	if !spec.SELinux.Off() && !l.Enforced && len(problems) == 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("service %s is not confined by SELinux: %s", spec.Service, l.Detail))
	}
}

// layer is how SELinux stands as a whole.
func (r *selinuxResource) layer(ctx context.Context, snap reconcile.Snapshot, interval time.Duration) control.Layer {
	l := control.Layer{Name: launch.LayerSELinux, Subject: "node", Configured: !r.want().none()}
	mode, err := r.host.Mode(ctx)
	have := "disabled, or not in this kernel"
	switch {
	case mode.Enforcing:
		have = "enforcing"
	case mode.Enabled:
		have = "permissive"
	}
	switch {
	case err != nil:
		l.Detail = err.Error()
	case !l.Configured:
		l.Detail = "no service is to be confined by it (selinux.mode: off); it is " + have
	case !mode.Enforcing:
		l.Detail = "it is " + have
	case snap.Passes == 0:
		l.Detail = "no pass yet"
	case overdue(snap, interval) || !snap.Right(selinuxName):
		l.Detail = "not known to be as desired, see the reasons"
	case fought(snap, selinuxName) > 0:
		l.Detail = foughtText("it", fought(snap, selinuxName))
	default:
		l.Enforced = true
		l.Detail = "enforcing; module, ports and labels are as desired"
	}
	return l
}
