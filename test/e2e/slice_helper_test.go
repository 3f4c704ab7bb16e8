package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

// slice is the bed of the tests of the whole: one VM with an agent and a real
// PostgreSQL, a peer and a sibling tenant on its subnet, and the control plane.
type slice struct {
	t                            *testing.T
	ctx                          context.Context
	bed                          *testbed.Bed
	node, peer, sibling, control *testbed.Host
	cluster                      *testbed.Cluster
	cfg                          testbed.AgentConfig
	agent                        *testbed.Agent
}

const sliceTimeout = 4 * time.Minute

// sliceLimits are unlike the defaults, so that "exactly as configured" says something.
var sliceLimits = map[string]any{
	"nofile": 4000, "core": 0, "nproc": map[string]int{"soft": 900, "hard": 1000}, "memlock": 65536,
}

func eachBackend(t *testing.T, f func(t *testing.T, backend string)) {
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) { f(t, backend) })
	}
}

// eachBackendAtOnce is eachBackend for tests that mostly wait, and whose claims bear that others run meanwhile.
func eachBackendAtOnce(t *testing.T, f func(t *testing.T, backend string)) {
	eachBackend(t, func(t *testing.T, backend string) {
		t.Parallel()
		f(t, backend)
	})
}

var bedNumber atomic.Int32

// bedName is a name for a bed that no other has that is open at the same time.
func bedName(kind string) string { return fmt.Sprintf("%s-%d", kind, bedNumber.Add(1)) }

// newSlice makes the bed and the agent's files; nothing runs yet.
func newSlice(t *testing.T, backend string, settings map[string]string) *slice {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), sliceTimeout)
	t.Cleanup(cancel)
	bed, err := testbed.New(ctx, bedName("slice"), []testbed.HostSpec{
		{Name: "pg-0", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64"}},
		{Name: "pool-0", Addresses: []string{"10.20.1.20/24", "fd00:20:1::20/64"}},
		{Name: "sibling", Addresses: []string{"10.20.1.66/24", "fd00:20:1::66/64"}},
		{Name: "control", Addresses: []string{"10.0.0.5/24", "fd00:10::5/64"}},
	})
	must(t, err)
	t.Cleanup(func() { must(t, bed.Close()) })
	s := &slice{t: t, ctx: ctx, bed: bed,
		node: bed.Host("pg-0"), peer: bed.Host("pool-0"), sibling: bed.Host("sibling"), control: bed.Host("control")}
	s.cluster, err = bed.NewCluster(ctx, testbed.ClusterSpec{Settings: settings})
	must(t, err)
	service := testbed.ServiceOf(s.cluster)
	service.Groups = supplementaryGroups(t, s.cluster.User)
	service.Limits = sliceLimits
	s.cfg = testbed.AgentConfig{
		Backend:  backend,
		Services: map[string]testbed.Service{"postgres": service},
		Peers: testbed.Peers{
			Instance: "orders-prod",
			Nodes:    []testbed.Peer{testbed.PeerOf(s.node, "postgres"), testbed.PeerOf(s.peer, "pgpool")},
			Networks: map[string][]string{"control_plane": {"10.0.0.0/24", "fd00:10::/64"}},
		},
	}
	s.agent, err = testbed.NewAgent(ctx, s.node, s.cfg)
	must(t, err)
	return s
}

// configure changes the service of a slice whose agent does not run yet.
func (s *slice) configure(change func(*testbed.Service)) {
	s.t.Helper()
	service := s.cfg.Services["postgres"]
	change(&service)
	s.cfg.Services["postgres"] = service
	must(s.t, s.agent.WriteConfig(s.cfg))
}

// withoutLandlock leaves a service every layer but one: it may execute what it likes.
func withoutLandlock(s *testbed.Service) { s.Landlock = map[string]any{"mode": "off"} }

// withoutMounts leaves a service the host's mounts.
func withoutMounts(s *testbed.Service) { s.Mounts = map[string]any{"mode": "off"} }

// withPrograms lets a service execute programs, as what they are behind all links.
func withPrograms(t *testing.T, names ...string) func(*testbed.Service) {
	t.Helper()
	return func(s *testbed.Service) {
		for _, name := range names {
			path, err := exec.LookPath(name)
			must(t, err)
			path, err = filepath.EvalSymlinks(path)
			must(t, err)
			s.Helpers = append(s.Helpers, path)
		}
	}
}

// startSlice also starts the daemon and waits until PostgreSQL is ready, and what it says of its size in the rules: what
// differs from then on is drift, and no change.
func startSlice(t *testing.T, backend string) *slice {
	t.Helper()
	s := newSlice(t, backend, nil)
	s.start()
	s.settled("the start")
	return s
}

func (s *slice) start() {
	s.t.Helper()
	must(s.t, s.agent.Start())
	s.awaitOK()
}

// awaitOK waits for status ok with postgres ready.
func (s *slice) awaitOK() control.Status {
	s.t.Helper()
	return s.awaitStatus("status ok", func(st control.Status) error {
		if st.State != control.StateOK || len(st.Services) != 1 || st.Services[0].State != "ready" {
			return fmt.Errorf("state %s, services %+v, reasons %q", st.State, st.Services, st.Reasons)
		}
		return nil
	})
}

func (s *slice) awaitStatus(what string, check func(control.Status) error) control.Status {
	s.t.Helper()
	var st control.Status
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	must(s.t, s.agent.Await(ctx, what, func(ctx context.Context) error {
		st = control.Status{}
		if _, err := s.agent.JSON(ctx, &st, "status"); err != nil {
			return err
		}
		return check(st)
	}))
	return st
}

func supplementaryGroups(t *testing.T, u *user.User) []string {
	t.Helper()
	names, err := testbed.SupplementaryGroups(u)
	must(t, err)
	return names
}

func (s *slice) cli(args ...string) testbed.Result {
	s.t.Helper()
	r, err := s.agent.CLI(s.ctx, args...)
	must(s.t, err)
	return r
}

// want runs a command and checks its exit code and that its output has each word.
func (s *slice) want(code int, words []string, args ...string) testbed.Result {
	s.t.Helper()
	r := s.cli(args...)
	if r.Code != code {
		s.t.Errorf("pghardend %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.Code, code, r.Stdout, r.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.Stdout+r.Stderr, w) {
			s.t.Errorf("pghardend %s does not say %q:\n%s%s", strings.Join(args, " "), w, r.Stdout, r.Stderr)
		}
	}
	return r
}

// sql runs one statement from a host over the network, as the tenant's user.
func (s *slice) sql(from *testbed.Host, to netip.Addr, sql string) (string, error) {
	return s.cluster.Psql(s.ctx, from, s.cluster.Conninfo(to, testbed.AppUser), sql)
}

// awaitRestored waits for drift events that name all the words and were
// repaired, and for an empty plan. Changes that come one after the other may be
// put back one by one; the last event is returned, with what all of them say.
func (s *slice) awaitRestored(after time.Time, words ...string) control.Drift {
	s.t.Helper()
	var found control.Drift
	s.awaitStatus("a repair of "+strings.Join(words, ", "), func(st control.Status) error {
		what := ""
		for _, d := range st.Drift {
			if d.Cause == "drift" && d.Found.After(after) && !d.Repaired.IsZero() {
				what += d.What
				found = d
			}
		}
		if found.What = what; !containsAll(what, words) {
			return fmt.Errorf("no such event yet: %.3000s", what)
		}
		return nil
	})
	s.want(0, []string{"nothing to do"}, "plan")
	return found
}

// whileFrozen does something, if asked to while the daemon stands still.
func (s *slice) whileFrozen(frozen bool, do func()) {
	s.t.Helper()
	if frozen {
		must(s.t, s.agent.Signal(unix.SIGSTOP))
		defer func() { must(s.t, s.agent.Signal(unix.SIGCONT)) }()
	}
	do()
}

func containsAll(text string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}
