package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/pghardend/pghardend/pkg/mac"
)

// The modes of SELinux.
const (
	SELinuxOff       = "off"       // the same as ""
	SELinuxPreferred = "preferred" // unconfined by it where it is not in force
	SELinuxRequired  = "required"
)

// SELinux says how a service is confined by SELinux.
type SELinux struct {
	Mode    string
	Type    string   // the domain of its first process
	Helpers []string // domains that its other processes may change to
	Level   string   // canonical, see mac.CanonicalLevel
}

// Off says whether the service is to keep the caller's label.
func (s SELinux) Off() bool { return s.Mode == "" || s.Mode == SELinuxOff }

// selinuxStage is what the checks prepared for the step.
type selinuxStage struct{ label string }

// checkSELinux finds the label that the program is to have. The stage is nil where it
// goes without.
func checkSELinux(ctx context.Context, spec Spec) (*selinuxStage, error) {
	want := spec.SELinux
	switch want.Mode {
	case "", SELinuxOff:
		return nil, nil
	case SELinuxPreferred, SELinuxRequired:
	default:
		return nil, fmt.Errorf("selinux mode %q: use %s, %s or %s", want.Mode, SELinuxRequired, SELinuxPreferred, SELinuxOff)
	}
	label, err := mac.HostSELinux().LaunchLabel(ctx, want.Type, want.Level, spec.Command[0])
	var fault *mac.LabelError
	if err != nil && (want.Mode == SELinuxRequired || !errors.As(err, &fault)) {
		return nil, fmt.Errorf("%w; or set services.%s.selinux.mode to %s to start without this layer", err, spec.Service, SELinuxPreferred)
	}
	if label == "" {
		return nil, nil
	}
	return &selinuxStage{label}, nil
}

// set asks for the label at execve.
func (s *selinuxStage) set() error {
	if s == nil {
		return nil
	}
	return mac.SetExecLabel(s.label)
}

// SELinuxState is what the kernel says of the label of a live process.
type SELinuxState struct {
	Mode  string
	Label string // "" if it has none
	Fault error  // why the label confines nothing; nil if it does
}

// ReadSELinux reads whether a process is confined by SELinux. The error is ErrVanished
// if it has ended.
func ReadSELinux(ctx context.Context, spec Spec, pid int) (SELinuxState, error) {
	s := SELinuxState{Mode: spec.SELinux.Mode}
	if spec.SELinux.Off() {
		return s, nil
	}
	var err error
	if s.Label, err = readLabel(pid); err != nil {
		return s, labelError(err, pid)
	}
	have, err := mac.ParseContext(s.Label)
	if err != nil { // no SELinux, or another module's label
		s.Label = ""
		s.Fault = mac.HostSELinux().Enforced(ctx, mac.Context{})
	} else if s.Fault = labelFault(spec.SELinux, have, false); s.Fault == nil {
		s.Fault = mac.HostSELinux().Enforced(ctx, have)
	}
	return s, ctx.Err()
}

func labelError(err error, pid int) error {
	if errors.Is(err, os.ErrNotExist) && !processThere(pid) {
		return ErrVanished
	}
	return fmt.Errorf("cannot read its SELinux label: %w", err)
}

// Enforced says whether all is as asked for, and denies.
func (s SELinuxState) Enforced() bool {
	return s.Mode != "" && s.Mode != SELinuxOff && s.Label != "" && s.Fault == nil
}

// Text says how things stand, for people.
func (s SELinuxState) Text() string {
	switch {
	case s.Mode == "" || s.Mode == SELinuxOff:
		return "switched off (selinux.mode: off)"
	case s.Enforced():
		return "label " + s.Label + ", enforcing, read from the kernel just now"
	}
	return "not enforced: " + s.Fault.Error()
}

// Findings are whether what is required of the first process is in force: that it has
// the label is a finding of Verify's. With preferred it is right without.
func (s SELinuxState) Findings(pid int) []Finding {
	if s.Mode == "" || s.Mode == SELinuxOff {
		return nil
	}
	f := Finding{PID: pid, Layer: LayerSELinux, Check: "enforcing", Want: "enforcing", Got: "enforcing", OK: true}
	if !s.Enforced() {
		f.Got = s.Text()
		if f.OK = s.Mode == SELinuxPreferred; f.OK {
			f.Want = SELinuxPreferred
		}
	}
	return []Finding{f}
}

// selinuxFindings compare the label of one process.
func selinuxFindings(ctx context.Context, spec Spec, pid int, child bool) ([]Finding, error) {
	if spec.SELinux.Off() {
		return nil, nil
	}
	text, err := readLabel(pid)
	if err != nil {
		return nil, labelError(err, pid)
	}
	f := Finding{PID: pid, Layer: LayerSELinux, Check: "label", Want: labelText(spec.SELinux), Got: text}
	have, err := mac.ParseContext(text)
	switch {
	case err == nil:
		f.OK = labelFault(spec.SELinux, have, child) == nil
	case text == "":
		f.Got = "none"
	}
	if !f.OK && spec.SELinux.Mode == SELinuxPreferred {
		f.Want, f.Got, f.OK = SELinuxPreferred, "not enforced: its label is "+f.Got, true
	}
	return []Finding{f}, ctx.Err()
}

func labelText(s SELinux) string { return s.Type + ":" + s.Level }

// HasLabel says whether a label is one that processes of such a service may have.
func HasLabel(want SELinux, have mac.Context) bool { return labelFault(want, have, true) == nil }

// labelFault compares a label with the domain and level that are asked for. A policy
// without levels has none in its labels.
func labelFault(want SELinux, have mac.Context, child bool) error {
	known := have.Type == want.Type || child && slices.Contains(want.Helpers, have.Type)
	if known && (have.Level == want.Level || have.Level == "") {
		return nil
	}
	return fmt.Errorf("SELinux: its label is %s, not %s", have, labelText(want))
}
