package launch

import (
	"context"
	"fmt"
	"time"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// ModeComplain is what Finding.Got and the status say of a layer that is not
// enforced because the service's mode is complain.
const ModeComplain = "complain"

// Complain lets a service do what seccomp and Landlock would deny. All other
// layers hold. No filter is loaded at all, so that the kernel itself shows that
// none is (Seccomp: 0 in /proc/PID/status), and nobody can take the process for
// an enforced one, whatever the configuration says by then.
type Complain struct {
	On    bool
	Until time.Time // launches after it enforce; zero for no end
}

// At says whether a launch at that time complains.
func (c Complain) At(now time.Time) bool {
	return c.On && (c.Until.IsZero() || now.Before(c.Until))
}

// Text is for people.
func (c Complain) Text() string {
	text := ModeComplain + ": seccomp and Landlock deny nothing"
	if !c.Until.IsZero() {
		text += ", until a start after " + c.Until.UTC().Format(time.RFC3339)
	}
	return text
}

// complaining takes the two layers out of a launch whose mode is complain.
func (p *prepared) complaining(spec Spec, now time.Time) {
	if !spec.Complain.At(now) {
		return
	}
	p.landlock.close()
	p.landlock, p.filter, p.gate, p.complain = nil, nil, nil, true
}

// loadFilter is without effect in a launch that complains, and in no other: a
// filter that is missing by mistake is an error of Load.
func (p *prepared) loadFilter(logged bool) error {
	switch {
	case p.complain:
		return nil
	case logged:
		return p.filter.LoadLogged()
	}
	return p.filter.Load()
}

// complainFinding stands for a layer that is not enforced, which is never right.
func complainFinding(pid int, layer, got string) Finding {
	return Finding{PID: pid, Layer: layer, Check: "mode", Want: "enforce", Got: got}
}

// seccompFindings: with complain the layer is never right, even if a filter is
// there, which is one of before the mode was changed.
func seccompFindings(spec Spec, s sandbox.Status, others before) []Finding {
	switch {
	case !spec.Complain.At(time.Now()):
		return compareSeccomp(s, others)
	case others.loaded(s):
		return []Finding{complainFinding(s.PID, layerSeccomp, fmt.Sprintf("%s, from the next start on (%d filters)", ModeComplain, s.Filters))}
	}
	return []Finding{complainFinding(s.PID, layerSeccomp, ModeComplain)}
}

// LandlockFindings are those of the domain, or that there is none on purpose.
func LandlockFindings(spec Spec, s LandlockState, pid int) []Finding {
	if spec.Complain.At(time.Now()) && !s.Off() {
		return []Finding{complainFinding(pid, LayerLandlock, ModeComplain)}
	}
	return s.Findings(pid)
}

// Complaining says whether a finding is there because of the mode.
func (f Finding) Complaining() bool { return f.Check == "mode" && f.Want == "enforce" }

// Intended is the identity that a Spec asks for.
func Intended(ctx context.Context, spec Spec) (Identity, error) {
	id, err := intendedIdentity(ctx, spec)
	if err != nil {
		return id, fmt.Errorf("cannot tell as whom service %s runs: %w", spec.Service, err)
	}
	return id, nil
}

// Executables are the files that the service may execute under Landlock: its
// program, its helpers, their interpreters and loaders. It reads them.
func Executables(ctx context.Context, spec Spec) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return executables(spec)
}
