package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/config"
)

func TestParseRequest(t *testing.T) {
	r, err := parseRequest("agent 812\nservice 900 postgres\nowner 14 /var/lib/my data\n")
	if err != nil || r.agent != 812 || r.services["postgres"] != 900 || len(r.owners) != 1 || r.owners[0] != (ownerWanted{14, "/var/lib/my data"}) {
		t.Errorf("%+v, %v", r, err)
	}
	for _, bad := range []string{"", "agent\n", "agent 0\n", "agent 1\n", "agent -5\n", "owner 3 /etc\n", "agent 812\nchmod 3 /etc\n", "agent 812\nowner x /etc\n", "agent 99999999999\n"} {
		if r, err := parseRequest(bad); err == nil {
			t.Errorf("%q: %+v", bad, r)
		}
	}
}

// What the other unit is asked for is what it reads.
func TestRequestIsRead(t *testing.T) {
	dir := t.TempDir()
	file, _, err := openPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	plan := filePlan{changes: []fileChange{
		{kept: &keptPath{path: dir, file: file}, have: ownership{uid: 1}, want: ownership{uid: 2}},
		{kept: &keptPath{path: "/mode", file: file}, have: ownership{mode: 0o777}, want: ownership{mode: 0o700}},
	}}
	var asked repairs
	if err := asked.ask(dir, serviceRequest([]runningService{{name: "postgres", pid: 77}})+ownerRequest(plan)); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, repairFile))
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseRequest(string(data))
	if err != nil || r.agent != os.Getpid() || r.services["postgres"] != 77 || len(r.owners) != 1 || r.owners[0] != (ownerWanted{int(file.Fd()), dir}) {
		t.Errorf("%s: %+v, %v", data, r, err)
	}
}

// A descriptor that leads elsewhere than its path is not acted on.
func TestOwnerOfAnotherPathIsLeft(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	file, _, err := openPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	link := fmt.Sprintf("/proc/self/fd/%d", file.Fd())
	if err := chownDescriptor(link, other, uint32(os.Getuid())); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("it is open on %s and asked for was %s: %v", dir, other, err)
	}
	if err := chownDescriptor(link, dir, uint32(os.Getuid())); err != nil {
		t.Error(err)
	}
}

// What the configuration does not name is nobody's to give away.
func TestOwnerOfUnknownPathIsRefused(t *testing.T) {
	cfg := config.Config{File: "/etc/pghardend/pghardend.yaml", PeersFile: "/etc/pghardend/peers.yaml"}
	r := repairRequest{agent: os.Getpid(), owners: []ownerWanted{{fd: 3, path: "/etc"}}}
	err := repairOwners(t.Context(), cfg, nil, r)
	if err == nil || !strings.Contains(err.Error(), "does not name it") {
		t.Errorf("%v", err)
	}
}

type failingResource struct {
	reconcile.Resource
	err error
}

func (r failingResource) Apply(context.Context, reconcile.Plan) error { return r.err }
func (failingResource) Peek(context.Context) bool                     { return false }

// The other unit is asked for what is not permitted, and for nothing else.
func TestDelegatedAsks(t *testing.T) {
	for err, want := range map[error]bool{
		nil: false, errors.New("busy"): false, unix.ENOENT: false,
		unix.EPERM: true, fmt.Errorf("cannot enter: %w", unix.EACCES): true, errors.Join(errors.New("x"), unix.EROFS): true,
	} {
		asked, looks := false, 0
		d := delegated{
			keptByLoop: failingResource{err: err},
			ask:        func(string) error { asked = true; return nil },
			again:      func(time.Duration) { looks++ },
		}
		got := d.Apply(t.Context(), filePlan{})
		if asked != want || (looks > 0) != want {
			t.Errorf("%v: asked %t, %d looks; want %t", err, asked, looks, want)
		}
		asking := (*reconcile.AskedError)(nil)
		if (got == nil) != (err == nil) || errors.As(got, &asking) != want || want && !strings.Contains(got.Error(), "pghardend-repair.service") {
			t.Errorf("%v: %v", err, got)
		}
	}
}
