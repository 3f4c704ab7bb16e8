package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

// Backends of iptables, iptables(8) and xtables-nft(8).
const (
	BackendAuto   = "auto"
	BackendNFT    = "nft"
	BackendLegacy = "legacy"
)

// A runner executes one command and returns what it wrote to standard output.
type runner interface {
	run(ctx context.Context, stdin string, name string, args ...string) ([]byte, error)
}

type execRunner struct{}

// commandTimeout bounds one iptables or ipset command; a restore of 10,000
// members takes well under a second.
const commandTimeout = 30 * time.Second

func (execRunner) run(ctx context.Context, stdin string, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", err, ctx.Err())
		}
		reason := strings.TrimSpace(stderr.String())
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(append([]string{name}, args...), " "), err, reason)
	}
	return stdout.Bytes(), nil
}

// tools are the commands of one family.
type tools struct {
	save, restore string
}

// lockWait is how long a command waits for the xtables lock (legacy backend).
const lockWait = 5 * time.Second

func lockArgs() []string {
	return []string{"-w", strconv.Itoa(int(lockWait / time.Second))}
}

// minVersion: 1.8.0 is the first with both backends under their own names.
const minVersion = "1.8.0"

// findTools looks for a family's commands of the backend by their own names
// (iptables-nft …), then by the plain ones if these are of that backend.
func findTools(ctx context.Context, run runner, fam Family, backend string) (tools, error) {
	base := "iptables"
	proto := iptables.ProtocolIPv4
	if fam == IPv6 {
		base, proto = "ip6tables", iptables.ProtocolIPv6
	}
	name := base + "-" + backend
	if _, err := exec.LookPath(name); err != nil {
		plain, err := backendOf(ctx, run, base)
		if err != nil {
			return tools{}, err
		}
		if plain != backend {
			return tools{}, fmt.Errorf("%s is not installed and %s is of the %s backend; install %s or set firewall.backend: %s", name, base, plain, name, plain)
		}
		name = base
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return tools{}, fmt.Errorf("%s is not installed; install the package iptables: %w", name, err)
	}
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(path), iptables.Timeout(int(lockWait/time.Second)))
	if err != nil {
		return tools{}, fmt.Errorf("cannot probe %s: %w", path, err)
	}
	if major, minor, patch := ipt.GetIptablesVersion(); major < 1 || (major == 1 && minor < 8) {
		return tools{}, fmt.Errorf("%s is version %d.%d.%d; install %s or later", path, major, minor, patch, minVersion)
	}
	return tools{save: path + "-save", restore: path + "-restore"}, nil
}

// backendOf asks a command for its backend.
func backendOf(ctx context.Context, run runner, name string) (string, error) {
	if _, err := exec.LookPath(name); err != nil {
		return "", fmt.Errorf("%s is not installed; install the package iptables: %w", name, err)
	}
	out, err := run.run(ctx, "", name, "--version")
	if err != nil {
		return "", fmt.Errorf("cannot ask for the version: %w", err)
	}
	switch {
	case bytes.Contains(out, []byte("(nf_tables)")):
		return BackendNFT, nil
	case bytes.Contains(out, []byte("(legacy)")):
		return BackendLegacy, nil
	}
	return "", fmt.Errorf("%s --version says %q, neither nf_tables nor legacy; install version %s or later", name, strings.TrimSpace(string(out)), minVersion)
}

func chooseBackend(ctx context.Context, run runner, asked string) (string, error) {
	switch asked {
	case BackendNFT, BackendLegacy:
		return asked, nil
	case BackendAuto:
		return backendOf(ctx, run, "iptables")
	}
	return "", errors.New("firewall.backend: use auto, nft or legacy")
}
