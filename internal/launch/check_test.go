package launch

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

func TestSpecFault(t *testing.T) {
	good := Spec{Service: "pg", User: "postgres", Command: []string{"/usr/bin/cat", ""}}
	wantNone(t, specFault(good))
	low, high, edge := -1001, 1001, -1000
	for name, c := range map[string]struct {
		change func(*Spec)
		word   string
	}{
		"no command":    {func(s *Spec) { s.Command = nil }, "services.pg.command"},
		"empty command": {func(s *Spec) { s.Command = []string{""} }, "services.pg.command"},
		"NUL":           {func(s *Spec) { s.Command = []string{"/x", "a\x00"} }, "argument 1"},
		"no user":       {func(s *Spec) { s.User = "" }, "services.pg.user"},
		"oom low":       {func(s *Spec) { s.OOMScoreAdj = &low }, "-1001"},
		"oom high":      {func(s *Spec) { s.OOMScoreAdj = &high }, "1001"},
	} {
		spec := good
		c.change(&spec)
		t.Run(name, func(t *testing.T) { wantError(t, specFault(spec), c.word) })
	}
	good.OOMScoreAdj = &edge
	wantNone(t, specFault(good))
}

// Checks come in the order of their codes, so the first one speaks.
func TestCheckNamesTheStep(t *testing.T) {
	_, err := Check(context.Background(), Spec{Service: "pg"})
	var e *Error
	if !errors.As(err, &e) || e.Step != StepSpec || e.Service != "pg" {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Check(ctx, Spec{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

// Root as a target is refused whoever asks; it must be
// a refusal by the right step.
func TestCheckCaller(t *testing.T) {
	_, err := Check(context.Background(), Spec{Service: "pg", User: "root", Command: []string{"/usr/bin/cat"}})
	var e *Error
	if !errors.As(err, &e) || e.Step != StepUser {
		t.Errorf("got %v, want step %s", err, StepUser)
	}
}

func TestPrivilegeFault(t *testing.T) {
	root := sandbox.Status{Eff: capability(unix.CAP_SETUID) | capability(unix.CAP_SETGID) | capability(unix.CAP_SETPCAP)}
	wantNone(t, privilegeFault(root, ""))
	for _, n := range []int{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP} {
		lacking := root
		lacking.Eff &^= capability(n)
		wantError(t, privilegeFault(lacking, ""), "CapabilityBoundingSet")
		wantError(t, privilegeFault(lacking, "use the drop-in"), "use the drop-in")
	}
}

func TestF33_Capabilities(t *testing.T) {
	admin, raw := capability(unix.CAP_NET_ADMIN), capability(unix.CAP_NET_RAW)
	for name, c := range map[string]struct {
		permitted, ambient, want sandbox.CapSet
		word                     string
	}{
		"none":               {admin | raw, 0, 0, ""},
		"held":               {admin | raw, 0, admin, ""},
		"held and inherited": {admin | raw, admin, admin | raw, ""},
		"not held":           {raw, 0, admin, "caller does not have it"},
		"inherited":          {admin | raw, raw, 0, "AmbientCapabilities"},
		"inherited, other":   {admin | raw, raw, admin, "AmbientCapabilities"},
	} {
		t.Run(name, func(t *testing.T) {
			err := capabilityFault(sandbox.Status{Prm: c.permitted, Amb: c.ambient}, c.want)
			if c.word == "" {
				wantNone(t, err)
				return
			}
			wantError(t, err, c.word)
		})
	}
}

func TestF29_KernelSupport(t *testing.T) {
	wantNone(t, seccompFault(unix.EFAULT))
	for _, answer := range []error{unix.ENOSYS, unix.EINVAL, unix.EPERM, nil} {
		wantError(t, seccompFault(answer), "CONFIG_SECCOMP_FILTER")
	}
	wantNone(t, seccompFault(probeSeccomp()))
}
