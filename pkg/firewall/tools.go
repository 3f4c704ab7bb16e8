package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
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

// A runner finds and executes commands.
type runner interface {
	// find returns a command's absolute path.
	find(name string) (string, error)
	// run executes a command and returns what it wrote to standard output.
	run(ctx context.Context, stdin string, path string, args ...string) ([]byte, error)
	// start begins a command on the calling thread, whose network namespace is
	// the command's, and returns what waits for its end and gives what run would.
	// That must be called.
	start(ctx context.Context, stdin string, path string, args ...string) func() ([]byte, error)
}

// toolDirs are searched for commands, whatever the caller's PATH: a login
// shell's often lacks the sbin directories.
var toolDirs = []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"}

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
	base, proto := fam.command(), iptables.ProtocolIPv4
	if fam == IPv6 {
		proto = iptables.ProtocolIPv6
	}
	path, err := run.find(base + "-" + backend)
	if err != nil {
		var plain string
		path, plain, err = backendOf(ctx, run, base)
		if err != nil {
			return tools{}, err
		}
		if plain != backend {
			return tools{}, fmt.Errorf("%s-%s is not installed and %s is of the %s backend; install the former or set firewall.backend: %s", base, backend, path, plain, plain)
		}
	}
	found := tools{save: path + "-save", restore: path + "-restore"}
	if backendOfFile(path) != "" {
		return found, nil // the names of these programs are as old as minVersion
	}
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(path), iptables.Timeout(int(lockWait/time.Second)))
	if err != nil {
		return tools{}, fmt.Errorf("cannot probe %s: %w", path, err)
	}
	if major, minor, patch := ipt.GetIptablesVersion(); major < 1 || (major == 1 && minor < 8) {
		return tools{}, fmt.Errorf("%s is version %d.%d.%d; install %s or later", path, major, minor, patch, minVersion)
	}
	return found, nil
}

// backendOf finds a command and asks it for its backend.
func backendOf(ctx context.Context, run runner, name string) (path, backend string, err error) {
	if path, err = run.find(name); err != nil {
		return "", "", fmt.Errorf("%s is not installed; install the package iptables: %w", name, err)
	}
	if backend = backendOfFile(path); backend != "" {
		return path, backend, nil
	}
	out, err := run.run(ctx, "", path, "--version")
	if err != nil {
		return "", "", fmt.Errorf("cannot ask for the version: %w", err)
	}
	switch {
	case bytes.Contains(out, []byte("(nf_tables)")):
		return path, BackendNFT, nil
	case bytes.Contains(out, []byte("(legacy)")):
		return path, BackendLegacy, nil
	}
	return "", "", fmt.Errorf("%s --version says %q, neither nf_tables nor legacy; install version %s or later", path, strings.TrimSpace(string(out)), minVersion)
}

// backendOfFile tells by the program behind a command's links, "" if it is
// neither of the two that iptables installs: which saves an exec.
func backendOfFile(path string) string {
	file, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	switch filepath.Base(file) {
	case "xtables-nft-multi":
		return BackendNFT
	case "xtables-legacy-multi":
		return BackendLegacy
	}
	return ""
}

func chooseBackend(ctx context.Context, run runner, asked string) (string, error) {
	switch asked {
	case BackendNFT, BackendLegacy:
		return asked, nil
	case BackendAuto:
		_, backend, err := backendOf(ctx, run, "iptables")
		if err != nil {
			var err6 error
			if _, backend, err6 = backendOf(ctx, run, "ip6tables"); err6 == nil {
				return backend, nil
			}
		}
		return backend, err
	}
	return "", errors.New("firewall.backend: use auto, nft or legacy")
}
