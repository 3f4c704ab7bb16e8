package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/supervise"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// addServices examines all services, since a process of one is no stray of
// another, and keeps what is about the one that was asked for; "" is all.
func (v *Verification) addServices(ctx context.Context, d Desired, asked string, deep bool) {
	subjects := make([]launch.Subject, len(d.Services))
	for i, spec := range d.Services {
		svc := d.Config.Services[i]
		pid, err := supervise.Find(ctx, superviseSpec(d.Config, svc))
		if err == nil && pid == 0 {
			err = errors.New("not running")
		}
		if err != nil && wanted(asked, svc.Name) {
			v.Problems = append(v.Problems, fmt.Sprintf("service %s: %v", svc.Name, err))
		}
		if pid != 0 {
			var problem string
			if spec, problem = asLaunched(ctx, d.Config, svc, spec, pid); problem != "" && wanted(asked, svc.Name) {
				v.Problems = append(v.Problems, problem)
			}
		}
		subjects[i] = launch.Subject{Spec: spec, First: pid, Ports: servicePorts(d.Firewall, svc)}
	}
	examined, err := launch.Examine(ctx, subjects, deep)
	if err != nil {
		v.Problems = append(v.Problems, err.Error())
		return
	}
	for i, x := range examined {
		if wanted(asked, subjects[i].Spec.Service) {
			v.addExamined(ctx, subjects[i], x)
		}
	}
}

// asLaunched is spec with the features that the launch chose for the profile, and
// what the configuration says against them. Without a record of the launch it is
// spec, which the loaded filter is then compared with.
func asLaunched(ctx context.Context, cfg config.Config, svc config.Service, spec launch.Spec, pid int) (_ launch.Spec, problem string) {
	r, ok, err := launch.ReadProfile(ctx, filepath.Join(cfg.RuntimeDir, profilesDir), svc.Name, pid)
	if err != nil || !ok {
		return spec, ""
	}
	p, err := composeProfile(svc.Profile, r.Names())
	if err != nil {
		return spec, fmt.Sprintf("service %s: it was started with features of another version: %v: restart it", svc.Name, err)
	}
	spec.Seccomp = p
	return spec, featureProblem(svc, r)
}

func wanted(asked, service string) bool { return asked == "" || asked == service }

func (v *Verification) addExamined(ctx context.Context, s launch.Subject, x launch.Examined) {
	findings, name := x.Findings, s.Spec.Service
	if s.First != 0 {
		domain, err := launch.ReadLandlock(ctx, s.Spec, s.First)
		if err != nil {
			v.Problems = append(v.Problems, fmt.Sprintf("service %s: %v", name, err))
		} else {
			findings = append(findings, launch.LandlockFindings(s.Spec, domain, s.First)...)
		}
		label, err := launch.ReadSELinux(ctx, s.Spec, s.First)
		if err != nil {
			v.Problems = append(v.Problems, fmt.Sprintf("service %s: %v", name, err))
		}
		findings = append(findings, label.Findings(s.First)...)
		_, groups, err := cgroupFindings(ctx, s.Spec, s.First)
		if err != nil {
			v.Problems = append(v.Problems, fmt.Sprintf("service %s: %v", name, err))
		}
		findings = append(findings, groups...)
		v.Services = append(v.Services, VerifiedSvc{Name: name, PID: s.First, Processes: len(x.Processes)})
	}
	v.Processes = append(v.Processes, x.Processes...)
	v.Findings = append(v.Findings, findings...)
	v.Problems = append(v.Problems, failures(name, findings)...)
}

// servicePorts are where the matrix and the openings let others in. Where the
// rules judge siblings only, a service may also listen where the configuration
// says that it does: who reaches that is for the host's own firewall to say.
func servicePorts(spec firewall.Spec, svc config.Service) launch.Ports {
	var p launch.Ports
	for _, f := range spec.Flows {
		if !slices.Contains(f.To, spec.Role) {
			continue
		}
		switch f.Proto {
		case firewall.ProtoTCP:
			p.TCP = append(p.TCP, f.Ports...)
		case firewall.ProtoUDP:
			p.UDP = append(p.UDP, f.Ports...)
		}
		if f.Limited && svc.Profile == spec.Role {
			p.Own = append(p.Own, f.Ports...)
		}
	}
	for _, o := range spec.Openings {
		switch o.Proto {
		case firewall.ProtoTCP:
			p.TCP = append(p.TCP, o.Port)
		case firewall.ProtoUDP:
			p.UDP = append(p.UDP, o.Port)
		}
	}
	if spec.Scope == firewall.ScopeSiblings {
		p.TCP = append(p.TCP, ports(svc.Landlock.Bind)...)
		if port, err := strconv.ParseUint(config.Option(svc.Command, "-p", "--port"), 10, 16); err == nil && isPostgres(svc) {
			p.TCP = append(p.TCP, uint16(port))
		}
	}
	return p
}
