package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// maxErrno is the largest error number that libseccomp takes, one less than the
// kernel's MAX_ERRNO (include/linux/err.h).
const maxErrno = 4094

// Profile is a valid seccomp profile. The zero value is not one.
type Profile struct {
	name  string
	def   seccomp.ScmpAction
	rules []rule
}

// rule is what one entry of a profile says about one system call.
type rule struct {
	syscall string
	action  seccomp.ScmpAction
	conds   []seccomp.ScmpCondition // all must hold; none: always
}

// ParseProfile reads a profile in the format of "linux.seccomp" in the OCI
// runtime specification (version 1.3, config-linux.md). name is for messages.
//
// It reads strictly. Keys must be known, spelt exactly and not repeated. A name
// must be one that libseccomp knows for some architecture; one that this machine
// lacks (open on arm64) is passed over by Compile. All unknown names are listed
// together. Refused as well, because it would be ignored, misread or have no
// effect: architectures other than none (the native one is meant), flags,
// listeners, an action that needs a tracer or listener, a default that allows,
// an entry that repeats the default, errnoRet without SCMP_ACT_ERRNO, two
// conditions on one argument in one entry (the specification says and, others
// take it for or), and two entries that say different things about one call.
func ParseProfile(name string, data []byte) (Profile, error) {
	spec, err := decodeProfile(data)
	if err != nil {
		return Profile{}, fmt.Errorf("cannot read seccomp profile %s: %w", name, err)
	}
	p := Profile{name: name}
	errs := p.fill(spec)
	errs = append(errs, unknownSyscalls(spec.Syscalls))
	if err := errors.Join(errs...); err != nil {
		return Profile{}, fmt.Errorf("cannot use seccomp profile %s: %w", name, err)
	}
	if err := p.checkOverlap(); err != nil {
		return Profile{}, fmt.Errorf("cannot use seccomp profile %s: %w", name, err)
	}
	return p, nil
}

// decodeProfile decodes one JSON object and nothing after it.
func decodeProfile(data []byte) (specs.LinuxSeccomp, error) {
	var spec specs.LinuxSeccomp
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&spec); err != nil {
		return spec, fmt.Errorf("at byte %d: %w", dec.InputOffset(), err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return spec, fmt.Errorf("at byte %d: more text after the profile", dec.InputOffset())
	}
	dec = json.NewDecoder(bytes.NewReader(data))
	if err := checkKeys(dec); err != nil {
		return spec, fmt.Errorf("at byte %d: %w", dec.InputOffset(), err)
	}
	return spec, nil
}

// profileKeys has every key of a profile as the specification spells it.
var profileKeys = []string{
	"defaultAction", "defaultErrnoRet", "architectures", "flags", "listenerPath", "listenerMetadata", "syscalls",
	"names", "action", "errnoRet", "args", "index", "value", "valueTwo", "op",
}

// checkKeys walks one JSON value. encoding/json takes keys of any case and lets
// the last of several win: both hide mistakes. The nesting is bounded, as the
// value has been decoded into the profile's type before.
func checkKeys(dec *json.Decoder) error {
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	open, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for dec.More() {
		if open == '{' {
			tok, err := dec.Token()
			if err != nil {
				return err
			}
			key, _ := tok.(string)
			if !slices.Contains(profileKeys, key) {
				return fmt.Errorf("unknown key %q (case matters)", key)
			}
			if seen[key] {
				return fmt.Errorf("key %q twice in one object", key)
			}
			seen[key] = true
		}
		if err := checkKeys(dec); err != nil {
			return err
		}
	}
	_, err = dec.Token() // the closing delimiter
	return err
}

// fill turns the decoded text into rules and returns all problems but unknown names.
func (p *Profile) fill(spec specs.LinuxSeccomp) []error {
	errs := checkUnsupported(spec)
	def, err := parseAction(spec.DefaultAction, spec.DefaultErrnoRet)
	switch {
	case err != nil:
		errs = append(errs, fmt.Errorf("defaultAction: %w", err))
	case def == seccomp.ActAllow || def == seccomp.ActLog:
		errs = append(errs, fmt.Errorf("defaultAction %s allows what is not listed: "+
			"use SCMP_ACT_ERRNO with defaultErrnoRet %d (ENOSYS)", spec.DefaultAction, unix.ENOSYS))
	}
	p.def = def
	if len(spec.Syscalls) == 0 {
		errs = append(errs, errors.New("syscalls: no entry"))
	}
	for i, s := range spec.Syscalls {
		if err := p.addEntry(s); err != nil {
			errs = append(errs, fmt.Errorf("syscalls[%d] (%s): %w", i, strings.Join(s.Names, " "), err))
		}
	}
	return errs
}

// addEntry adds one rule for each name of an entry.
func (p *Profile) addEntry(s specs.LinuxSyscall) error {
	if len(s.Names) == 0 {
		return errors.New("names: none")
	}
	action, err := parseAction(s.Action, s.ErrnoRet)
	if err != nil {
		return fmt.Errorf("action: %w", err)
	}
	if action == p.def {
		return errors.New("action: the same as defaultAction, so the entry has no effect: remove it")
	}
	conds, err := parseArgs(s.Args)
	if err != nil {
		return err
	}
	for _, name := range s.Names {
		p.rules = append(p.rules, rule{syscall: name, action: action, conds: conds})
	}
	return nil
}

// checkUnsupported refuses the parts of the format that would have no effect here.
func checkUnsupported(spec specs.LinuxSeccomp) []error {
	var errs []error
	if len(spec.Architectures) > 0 {
		errs = append(errs, fmt.Errorf("architectures %v: calls of the native architecture alone are let through: "+
			"remove the key", spec.Architectures))
	}
	if len(spec.Flags) > 0 {
		errs = append(errs, fmt.Errorf("flags %v: not supported: remove the key", spec.Flags))
	}
	if spec.ListenerPath != "" || spec.ListenerMetadata != "" {
		errs = append(errs, errors.New("listenerPath, listenerMetadata: there is no listener: remove the keys"))
	}
	return errs
}

// parseAction gives libseccomp's form of an action; without errnoRet an error is
// EPERM, as the specification has it.
func parseAction(name specs.LinuxSeccompAction, errno *uint) (seccomp.ScmpAction, error) {
	if errno != nil && name != specs.ActErrno {
		return seccomp.ActInvalid, fmt.Errorf("an errno has no meaning with %s: remove it", name)
	}
	switch name {
	case specs.ActAllow:
		return seccomp.ActAllow, nil
	case specs.ActLog:
		return seccomp.ActLog, nil
	case specs.ActTrap:
		return seccomp.ActTrap, nil
	case specs.ActKill, specs.ActKillThread:
		return seccomp.ActKillThread, nil
	case specs.ActKillProcess:
		return seccomp.ActKillProcess, nil
	case specs.ActErrno:
		code := uint(unix.EPERM)
		if errno != nil {
			code = *errno
		}
		// 0 would make the call look as if it had succeeded.
		if code == 0 || code > maxErrno {
			return seccomp.ActInvalid, fmt.Errorf("errno %d is not within 1..%d", code, maxErrno)
		}
		return seccomp.ActErrno.SetReturnCode(int16(code)), nil
	case specs.ActTrace, specs.ActNotify:
		return seccomp.ActInvalid, fmt.Errorf("%s needs a process that answers, there is none: use SCMP_ACT_ERRNO", name)
	default:
		return seccomp.ActInvalid, fmt.Errorf("unknown action %q: use SCMP_ACT_ALLOW, _ERRNO, _LOG, _TRAP, "+
			"_KILL_THREAD or _KILL_PROCESS", name)
	}
}

// unknownSyscalls lists the names that libseccomp does not know at all.
func unknownSyscalls(entries []specs.LinuxSyscall) error {
	var unknown []string
	for _, s := range entries {
		for _, name := range s.Names {
			if !knownSyscall(name) {
				unknown = append(unknown, fmt.Sprintf("%q", name))
			}
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	slices.Sort(unknown)
	major, minor, micro := seccomp.GetLibraryVersion()
	return fmt.Errorf("unknown system calls: %s: correct the spelling, or use a libseccomp newer than %d.%d.%d",
		strings.Join(slices.Compact(unknown), ", "), major, minor, micro)
}

// knownSyscall asks libseccomp. A name may not reach C cut short by a NUL byte.
func knownSyscall(name string) bool {
	if name == "" || strings.ContainsRune(name, 0) {
		return false
	}
	_, err := seccomp.GetSyscallFromName(name)
	return err == nil
}
