package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// nothingGoodError is files that cannot be used, and last good ones that cannot be either.
type nothingGoodError struct{ cause, lastGood error }

func (e nothingGoodError) Error() string {
	return fmt.Sprintf("%v\nnothing was applied: %v", e.cause, e.lastGood)
}

func (e nothingGoodError) Unwrap() []error { return []error{e.cause, e.lastGood} }

// bootPatience is for a host that is so busy with its boot that iptables runs into its
// time-out again and again; pghardend-boot.service waits for longer.
const bootPatience = 4 * time.Minute

// ApplyAtBoot is Apply, which goes on trying as long as commands are too slow, and stands between the host and the network also where
// there is nothing good to apply: while systemd boots the machine, the control
// plane alone is let in then. The error is that of Apply, with what is in force. At any
// other time the host stays as it is: a mistake in its first files must not cut
// off what it does.
func ApplyAtBoot(ctx context.Context, configFile string, force bool) (Applied, error) {
	for began := time.Now(); ; {
		applied, err := applyOrControlPlane(ctx, configFile, force)
		slow := errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil
		if !slow || time.Since(began) > bootPatience || !booting(ctx) {
			return applied, err
		}
	}
}

func applyOrControlPlane(ctx context.Context, configFile string, force bool) (Applied, error) {
	applied, err := Apply(ctx, configFile, force)
	var none nothingGoodError
	if !errors.As(err, &none) || !booting(ctx) {
		return applied, err
	}
	changes, said, aloneErr := applyControlPlane(ctx, configFile)
	if aloneErr != nil {
		return Applied{Changes: changes}, fmt.Errorf("%w\nnor could the control plane alone be let in: %w", err, aloneErr)
	}
	return Applied{Changes: changes}, fmt.Errorf("%w\n%w\n%s; correct the files (`pghardend validate` checks them) and `systemctl restart pghardend`",
		none.cause, none.lastGood, said)
}

// booting says whether systemd has not come to the end of the boot, systemctl(1).
func booting(ctx context.Context) bool {
	out, _ := exec.CommandContext(ctx, "systemctl", "is-system-running").Output() // its exit status is not 0 then
	state := string(bytes.TrimSpace(out))
	return state == "initializing" || state == "starting"
}

func applyControlPlane(ctx context.Context, configFile string) (changes Changes, said string, err error) {
	cfg, list, err := salvage(ctx, configFile)
	if err != nil {
		return Changes{}, "", err
	}
	d, err := buildControlPlane(cfg, list)
	if err != nil {
		return Changes{}, "", err
	}
	release, err := lockFor(ctx, d.Config)
	if err != nil {
		return Changes{}, "", err
	}
	defer release()
	changes, err = applyRules(ctx, d, always)
	if len(list) == 0 {
		return changes, "nobody is let in, because no control plane can be read from " + cfg.PeersFile, err
	}
	return changes, "only the control plane " + strings.Trim(fmt.Sprint(list), "[]") + " is let in", err
}

// salvage is what can still be used of the files: the configuration, or else its
// defaults, and the control plane, or none. What others could have written is not.
func salvage(ctx context.Context, configFile string) (config.Config, []netip.Prefix, error) {
	cfg, err := LoadConfig(ctx, configFile)
	if err != nil {
		if cfg, err = parseConfig(ctx, configFile, []byte("version: 1\n")); err != nil {
			return cfg, nil, err
		}
		cfg.RuntimeDir = RuntimeDir(ctx, configFile)
		cfg.StateDir = stateDir(ctx, configFile)
		cfg.PeersFile = guessDir(ctx, configFile, "peers_file", "", filepath.Join(filepath.Dir(configFile), acceptedPeers))
	}
	data, err := config.ReadFile(ctx, cfg.PeersFile)
	if err != nil {
		return cfg, nil, ctx.Err()
	}
	if peers, err := config.ParsePeers(cfg.PeersFile, data); err == nil {
		return cfg, peers.Networks[controlPlane], nil
	}
	return cfg, config.SalvageControlPlane(data), nil
}

// buildControlPlane makes rules of the flows that come from the control plane, and of
// no others, whoever the host's own firewall would let in.
func buildControlPlane(cfg config.Config, list []netip.Prefix) (Desired, error) {
	flows, err := flowsInForce(cfg)
	if err != nil { // one that does not fit
		if flows, err = flowsInForce(config.Config{}); err != nil {
			return Desired{}, err
		}
	}
	var alone []firewall.Flow
	for _, f := range flows {
		if slices.Contains(f.From, controlPlane) {
			f.From, f.To = []string{controlPlane}, []string{config.RolePostgres} // any role would do
			alone = append(alone, f)
		}
	}
	settings, err := sysctls(cfg)
	if err != nil {
		if settings, err = sysctls(config.Config{}); err != nil {
			return Desired{}, err
		}
	}
	d := Desired{Config: cfg, Sysctls: settings, Firewall: firewall.Spec{
		Role: config.RolePostgres, Flows: alone, Members: map[string][]netip.Prefix{controlPlane: list}}}
	d.Rules, err = firewall.Render(d.Firewall)
	return d, err
}
