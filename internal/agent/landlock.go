package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
	"github.com/pghardend/pghardend/pkg/mac"
	"github.com/pghardend/pghardend/policies"
)

// landlockSpec is what the profile needs, what the configuration declares, and the
// ports of the flow matrix. Nothing is taken from what the service itself can
// write, such as postgresql.conf or links to tablespaces.
func landlockSpec(cfg config.Config, svc config.Service) (launch.Landlock, error) {
	l := launch.Landlock{Mode: svc.Landlock.Mode, RecordDir: filepath.Join(cfg.RuntimeDir, "landlock")}
	if l.Mode == config.LandlockOff {
		return l, nil
	}
	key := "services." + svc.Name
	policy, err := landlockPolicy(svc.Profile)
	if err != nil {
		return l, fmt.Errorf("%s: %s.profile: %w", cfg.Where(key+".profile"), key, err)
	}
	l.Rules = policy.RuleSet(svc.DataDir, key+".data_dir")
	for _, list := range []struct {
		name   string
		paths  []string
		access mac.Access
	}{
		{"read", svc.Landlock.Read, mac.Read},
		{"write", svc.Landlock.Write, mac.Write | mac.Link | mac.Socket},
	} {
		for i, path := range list.paths {
			l.Rules.Rules = append(l.Rules.Rules,
				mac.Rule{Path: path, Access: list.access, Setting: fmt.Sprintf("%s.landlock.%s[%d]", key, list.name, i)})
		}
	}
	l.Rules.NeverWrite = append(l.Rules.NeverWrite, cfg.RuntimeDir, cfg.StateDir, cfg.File, cfg.PeersFile)
	if err := addPorts(&l.Rules, cfg, svc); err != nil {
		return l, err
	}
	return l, landlockFault(l.Rules, cfg, svc)
}

func landlockPolicy(profile string) (mac.Policy, error) {
	file := "landlock/" + profile + ".yaml"
	data, err := fs.ReadFile(policies.FS, file)
	if err != nil {
		return mac.Policy{}, fmt.Errorf("there is no Landlock policy for the profile %q: set landlock.mode to off", profile)
	}
	return mac.ParsePolicy(file, data)
}

// addPorts lets a service listen where the matrix lets others connect to it, and
// connect to what the matrix lets its role reach. Landlock knows no addresses: the
// firewall says to whom, and lets everything pass on the loopback interface.
func addPorts(set *mac.RuleSet, cfg config.Config, svc config.Service) error {
	flows, err := flowsInForce(cfg)
	if err != nil {
		return err
	}
	bind, connect := ports(svc.Landlock.Bind), ports(svc.Landlock.Connect)
	for _, f := range flows {
		if f.Proto != firewall.ProtoTCP {
			continue
		}
		if f.Limited && slices.Contains(f.To, svc.Profile) { // ssh is a flow too, but no service's
			bind = append(bind, f.Ports...)
		}
		if slices.Contains(f.From, svc.Profile) {
			connect = append(connect, f.Ports...)
		}
	}
	if port, err := strconv.ParseUint(config.Option(svc.Command, "-p", "--port"), 10, 16); err == nil && isPostgres(svc) {
		bind = append(bind, uint16(port))
	}
	set.Bind = mac.Ports{Restricted: true, Allowed: sorted(bind)}
	set.Connect = mac.Ports{Restricted: true, Allowed: sorted(append(connect, bind...))} // its own, by way of lo
	return nil
}

func ports(list []int) []uint16 {
	out := make([]uint16, len(list))
	for i, p := range list {
		out[i] = uint16(p) // pkg/config takes 1 to 65535
	}
	return out
}

func sorted(ports []uint16) []uint16 {
	slices.Sort(ports)
	return slices.Compact(ports)
}

// landlockFault finds what can be known to be wrong before the service starts, and
// says the line. Where links lead is looked at by the launch stage.
func landlockFault(set mac.RuleSet, cfg config.Config, svc config.Service) error {
	for _, path := range append([]string{svc.Command[0]}, svc.Helpers...) {
		set.Rules = append(slices.Clip(set.Rules), mac.Rule{Path: filepath.Clean(path), Access: mac.Execute})
	}
	var errs []error
	for _, r := range set.Rules {
		alone := mac.RuleSet{Rules: []mac.Rule{r}, NeverWrite: set.NeverWrite}
		for _, other := range set.Rules {
			if other.Access == mac.Execute && other.Path != r.Path {
				alone.Rules = append(alone.Rules, other)
			}
		}
		if err := alone.Fault(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", cfg.Where(r.Setting), err))
		}
	}
	return errors.Join(errs...)
}

// addLandlock shows the layer of a running service. It is not among those that
// are read from /proc, where the kernel shows nothing of it.
func addLandlock(ctx context.Context, spec launch.Spec, pid int, s *control.Status) {
	domain, err := launch.ReadLandlock(ctx, spec, pid)
	if err != nil {
		s.Reasons = append(s.Reasons, fmt.Sprintf("service %s cannot be verified: %v", spec.Service, err))
		return
	}
	s.Layers = append(s.Layers, control.Layer{
		Name: launch.LayerLandlock, Subject: spec.Service, Configured: !domain.Off(), Enforced: domain.Enforced(), Detail: domain.Text(),
	})
	problems := failures(spec.Service, withoutComplaints(launch.LandlockFindings(spec, domain, pid)))
	s.Reasons = append(s.Reasons, problems...)
	if !domain.Off() && !domain.Enforced() && len(problems) == 0 && !spec.Complain.At(time.Now()) {
		s.Warnings = append(s.Warnings, fmt.Sprintf("service %s runs without Landlock: %s", spec.Service, domain.Text()))
	}
}
