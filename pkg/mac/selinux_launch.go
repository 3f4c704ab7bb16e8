package mac

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
)

// LabelError is why a label does not confine, or would not.
type LabelError struct {
	Reason Reason
	Text   string // what is wrong, and the fix
}

func (f *LabelError) Error() string { return f.Text }

// Reason is one kind of LabelError.
type Reason string

// The reasons.
const (
	ReasonDisabled         Reason = "disabled"          // there is no SELinux in force
	ReasonPermissive       Reason = "permissive"        // nothing is denied to anybody
	ReasonPermissiveDomain Reason = "permissive domain" // nothing is denied to this domain
	ReasonNoDomain         Reason = "no domain"         // the policy does not know the label
	ReasonTransition       Reason = "transition denied" // the policy does not let this process start a program with it
)

func newLabelError(reason Reason, format string, args ...any) error {
	return &LabelError{reason, "SELinux: " + fmt.Sprintf(format, args...)}
}

// Enforced is nil if SELinux confines processes with a label right now, else a
// *LabelError, or what kept it from being known.
func (s *SELinux) Enforced(ctx context.Context, label Context) error {
	if err := s.present(ctx, label); err != nil {
		return err
	}
	return s.denies(ctx, label)
}

// present says whether there is a policy, and one that knows the label.
func (s *SELinux) present(ctx context.Context, label Context) error {
	mode, err := s.Mode(ctx)
	if err != nil {
		return err
	}
	if !mode.Enabled {
		return newLabelError(ReasonDisabled, "disabled, or not in this kernel: install a policy and boot with security=selinux selinux=1")
	}
	known, err := s.Known(ctx, label)
	if err == nil && !known {
		return newLabelError(ReasonNoDomain, "the policy does not know the label %s: load the module (semodule -i FILE.pp), "+
			"and start the agent by systemd, whose role may have such a type", label)
	}
	return err
}

// denies says whether what the policy does not allow is denied.
func (s *SELinux) denies(ctx context.Context, label Context) error {
	mode, err := s.Mode(ctx)
	if err != nil {
		return err
	}
	if !mode.Enforcing {
		return newLabelError(ReasonPermissive, "permissive, so it denies nothing: `setenforce 1`, and SELINUX=enforcing in /etc/selinux/config")
	}
	decision, err := s.Decide(ctx, label, label, "process")
	if err == nil && decision.Permissive {
		return newLabelError(ReasonPermissiveDomain, "the domain %s is permissive, so nothing is denied to it: `semanage permissive -d %s`", label.Type, label.Type)
	}
	return err
}

// LaunchLabel is the label that a program gets which the calling thread starts: its
// own user and role, with the type and the level. The error is a *LabelError if the
// program would not be confined; the label is not empty if it can be had all the same.
func (s *SELinux) LaunchLabel(ctx context.Context, typ, level, program string) (label string, err error) {
	mode, err := s.Mode(ctx)
	if err != nil {
		return "", err
	}
	if !mode.Enabled {
		return "", s.present(ctx, Context{})
	}
	text, err := s.self()
	if err != nil {
		return "", fmt.Errorf("cannot read this process's SELinux label: %w", err)
	}
	self, err := ParseContext(text)
	if err != nil {
		return "", err
	}
	target := self.With(typ, level)
	if err := s.present(ctx, target); err != nil {
		return "", err
	}
	if err := s.mayBecome(ctx, self, target, program); err != nil {
		return "", err
	}
	return target.String(), s.denies(ctx, target)
}

// mayBecome asks for all that the kernel will ask at execve (selinux_bprm_creds_for_exec),
// no_new_privs and mounts with nosuid included.
func (s *SELinux) mayBecome(ctx context.Context, self, target Context, program string) error {
	text, err := s.label(program)
	if err != nil {
		return fmt.Errorf("cannot read the SELinux label of %s: %w", program, err)
	}
	file, err := ParseContext(text)
	if err != nil {
		return fmt.Errorf("the SELinux label of %s: %w: `restorecon -v %s`", program, err, program)
	}
	for _, q := range []struct {
		source, target Context
		class          string
		permissions    []string
		fix            string
	}{
		{self, self, "process", []string{"setexec"}, "start it by systemd, so that it runs in the agent's domain"},
		{self, target, "process", []string{"transition"}, "start it by systemd, so that it runs in the agent's domain"},
		{self, target, "process2", []string{"nnp_transition", "nosuid_transition"}, "load the agent's policy module, which allows it"},
		{target, file, "file", []string{"entrypoint"}, fmt.Sprintf("the program has the label %s: `restorecon -v %s`, or label it as a program of the service", file, program)},
	} {
		decision, err := s.Decide(ctx, q.source, q.target, q.class, q.permissions...)
		if err != nil {
			return err
		}
		if len(decision.Missing) > 0 {
			return newLabelError(ReasonTransition, "%s may not become %s by executing %s: no permission %s { %s } from %s to %s: %s",
				self, target, program, q.class, strings.Join(decision.Missing, " "), q.source, q.target, q.fix)
		}
	}
	return nil
}

// SetExecLabel gives the program that the calling thread executes next a label,
// and reads it back. The handles of procfs are verified ones.
func SetExecLabel(label string) error {
	if err := selinux.SetExecLabel(label); err != nil {
		return fmt.Errorf("cannot ask SELinux for the label %s: %w%s", label, err, deniedHint(err, "process setexec"))
	}
	got, err := selinux.ExecLabel()
	if err != nil {
		return fmt.Errorf("cannot read back the SELinux label for the program: %w", err)
	}
	if strings.TrimRight(got, "\x00\n") != label {
		return errors.New("SELinux has the label " + got + " for the program, after it was set to " + label)
	}
	return nil
}
