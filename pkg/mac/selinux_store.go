package mac

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// PortType is the type of one port.
type PortType struct {
	Proto string // tcp or udp
	Port  int
	Type  string
}

// The kernel cannot be asked for the type of a port. What was set with `semanage port`
// is in the policy store, from which each policy that is loaded is built.
const selinuxStore = "/var/lib/selinux"

// LocalPorts are the port types that were set on this host on top of the policy's own.
func LocalPorts(ctx context.Context) ([]PortType, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name := storeName()
	if name == "" {
		return nil, errors.New("cannot read the types of ports: SELINUXTYPE is not in /etc/selinux/config")
	}
	data, err := os.ReadFile(filepath.Join(selinuxStore, name, "active", "ports.local"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the types of ports: %w", err)
	}
	return ParsePorts(data)
}

// storeName is the name of the policy in force, /etc/selinux/config.
func storeName() string {
	data, err := os.ReadFile("/etc/selinux/config")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "SELINUXTYPE="); ok {
			return filepath.Base(strings.Trim(name, `"`))
		}
	}
	return ""
}

// ParsePorts reads libsemanage's ports.local: lines such as
// `portcon tcp 9999 system_u:object_r:http_port_t:s0`. Ranges count with each port.
func ParsePorts(data []byte) ([]PortType, error) {
	var list []PortType
	for line := range bytes.Lines(data) {
		words := strings.Fields(string(line))
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if len(words) < 4 || words[0] != "portcon" {
			return nil, fmt.Errorf("cannot read the types of ports: %q is no portcon", strings.TrimSpace(string(line)))
		}
		c, err := ParseContext(words[len(words)-1])
		if err != nil {
			return nil, fmt.Errorf("cannot read the types of ports: %w", err)
		}
		first, last, isRange := strings.Cut(strings.Join(words[2:len(words)-1], ""), "-")
		if !isRange {
			last = first
		}
		low, lowErr := strconv.ParseUint(first, 10, 16)
		high, highErr := strconv.ParseUint(last, 10, 16)
		if err := errors.Join(lowErr, highErr); err != nil {
			return nil, fmt.Errorf("cannot read the types of ports: %w", err)
		}
		for port := low; port <= high; port++ {
			list = append(list, PortType{words[1], int(port), c.Type})
		}
	}
	return list, nil
}

// storeTimeout bounds each command: to build a policy takes seconds, minutes on a
// machine that is emulated.
const storeTimeout = 15 * time.Minute

// LoadModule installs a policy module and loads the policy.
func LoadModule(ctx context.Context, file string) error {
	return storeCommand(ctx, "install the policy package", "semodule", "-i", file)
}

// RemovePermissive makes a domain deny again what is not allowed to it.
func RemovePermissive(ctx context.Context, domain string) error {
	return storeCommand(ctx, "run semanage permissive -d "+domain, "semodule", "-r", "permissive_"+domain)
}

// SetPort gives a port its type, whatever it has.
func SetPort(ctx context.Context, p PortType) error {
	args := []string{"-t", p.Type, "-p", p.Proto, strconv.Itoa(p.Port)}
	err := storeCommand(ctx, "", "semanage", append([]string{"port", "-a"}, args...)...)
	if err == nil {
		return nil
	}
	// That it has one already, which is no error of -m.
	return storeCommand(ctx, "install policycoreutils-python-utils", "semanage", append([]string{"port", "-m"}, args...)...)
}

// storeCommand runs a command on the policy store, in the C locale.
func storeCommand(ctx context.Context, fix, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		said := strings.Join(strings.Fields(string(out[:min(len(out), 500)])), " ")
		return fmt.Errorf("cannot run %s %s: %w: %s: %s", name, strings.Join(args, " "), err, said, fix)
	}
	return nil
}
