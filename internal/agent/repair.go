package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

// Repair puts back once, for a daemon that may not: the mounts of live services, their
// control groups, owners of what the daemon keeps, and the priority of its threads that
// answer rule changes. The daemon keeps its lock: this is its arm, and writes to
// nothing that the daemon itself can write to.
func Repair(ctx context.Context, configFile string) error {
	cfg, err := LoadConfig(ctx, configFile)
	if err != nil {
		return err
	}
	request, err := readRequest(ctx, cfg.RuntimeDir)
	if err != nil {
		return err
	}
	list, err := namedServices(ctx, cfg, request.services)
	running := func(into []runningService) []runningService { return append(into, list...) }
	return errors.Join(err, firewall.Promote(ctx, request.agent), repairOwners(ctx, cfg, list, request),
		repairMounts(ctx, running), repairGroups(ctx, running))
}

// repairRequest is what askForRepair writes.
type repairRequest struct {
	agent    int            // its process id
	services map[string]int // the first processes of those that run
	owners   []ownerWanted
}

// ownerWanted is a descriptor of the agent's, and the path that it was opened by.
type ownerWanted struct {
	fd   int
	path string
}

func readRequest(ctx context.Context, runtimeDir string) (repairRequest, error) {
	var r repairRequest
	data, err := config.ReadFile(ctx, filepath.Join(runtimeDir, repairFile)) // root's, and nobody else's
	if err != nil {
		return r, fmt.Errorf("cannot read what is to be repaired: %w", err)
	}
	return parseRequest(string(data))
}

func parseRequest(text string) (r repairRequest, err error) {
	r.services = map[string]int{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		word, rest, _ := strings.Cut(line, " ")
		first, name, _ := strings.Cut(rest, " ")
		number, err := strconv.ParseUint(first, 10, 31)
		switch {
		case err != nil:
		case word == "agent":
			r.agent = int(number)
		case word == "service":
			r.services[name] = int(number)
		case word == "owner":
			r.owners = append(r.owners, ownerWanted{fd: int(number), path: name})
		default:
			err = errors.New("unknown word")
		}
		if err != nil {
			return repairRequest{}, fmt.Errorf("cannot parse %q of what is to be repaired: %w", line, err)
		}
	}
	if r.agent <= 1 {
		return repairRequest{}, errors.New("what is to be repaired does not say who asks")
	}
	return r, nil
}

// ownersOf are the paths whose owners the agent keeps, and these: the user of the live
// service for its data directory, root for what is the agent's own.
func ownersOf(ctx context.Context, cfg config.Config, list []runningService) (map[string]uint32, error) {
	owners := map[string]uint32{}
	for _, path := range []string{cfg.File, cfg.PeersFile, filepath.Dir(cfg.File), filepath.Dir(cfg.PeersFile), cfg.RuntimeDir, cfg.StateDir} {
		owners[path] = 0
	}
	var errs []error
	for _, svc := range list {
		status, err := sandbox.ReadStatus(ctx, svc.pid)
		if err != nil {
			errs = append(errs, fmt.Errorf("service %s: %w", svc.name, err))
			continue
		}
		if uid := status.UIDs[0]; uid != 0 && svc.spec.DataDir != "" {
			owners[svc.spec.DataDir] = uid
		}
	}
	return owners, errors.Join(errs...)
}

// repairOwners acts on the agent's descriptors alone, and only where the configuration says
// whose the path is that they were opened by.
func repairOwners(ctx context.Context, cfg config.Config, list []runningService, r repairRequest) error {
	if len(r.owners) == 0 {
		return nil
	}
	owners, err := ownersOf(ctx, cfg, list)
	errs := []error{err}
	for _, o := range r.owners {
		uid, known := owners[o.path]
		if !known {
			errs = append(errs, fmt.Errorf("cannot put back the owner of %s: the configuration does not name it", o.path))
			continue
		}
		if err := chownDescriptor(fmt.Sprintf("/proc/%d/fd/%d", r.agent, o.fd), o.path, uid); err != nil {
			errs = append(errs, fmt.Errorf("cannot put back the owner of %s: %w", o.path, err))
		}
	}
	return errors.Join(errs...)
}

// chownDescriptor changes what a descriptor of another process is open on, if that is
// still called so.
func chownDescriptor(link, path string, uid uint32) error {
	fd, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil || name != path {
		return errors.Join(err, fmt.Errorf("it is open on %s", name))
	}
	return unix.Fchownat(fd, "", int(uid), -1, unix.AT_EMPTY_PATH)
}

func repairMounts(ctx context.Context, running func([]runningService) []runningService) error {
	processes := newProcessesResource(running)
	defer processes.close()
	found, err := processes.Plan(ctx)
	if plan, ok := found.(processPlan); ok {
		err = errors.Join(err, plan.applyMounts(ctx))
	}
	return err
}

func repairGroups(ctx context.Context, running func([]runningService) []runningService) error {
	groups := newCgroupsResource(running)
	defer groups.close()
	plan, err := groups.Plan(ctx)
	if plan != nil && !plan.Empty() {
		err = errors.Join(err, groups.Apply(ctx, plan))
	}
	return err
}

// namedServices are those of the configuration that the agent sees running, as long as
// they do, and do so as the user that the configuration names.
func namedServices(ctx context.Context, cfg config.Config, pids map[string]int) ([]runningService, error) {
	var list []runningService
	var errs []error
	facts := knownFacts(ctx, cfg)
	for _, svc := range cfg.Services {
		pid, running := pids[svc.Name]
		if !running {
			continue
		}
		spec, err := ServiceSpec(cfg, svc.Name)
		if err == nil {
			err = launch.RunsAs(ctx, spec, pid)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("service %s: %w", svc.Name, err))
			continue
		}
		boundTasks(&spec.Cgroup, cfg, svc.Name, facts)
		list = append(list, runningService{name: svc.Name, pid: pid, adopted: true, spec: spec})
	}
	return list, errors.Join(errs...)
}
