package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// maxErrno is the largest error number that libseccomp takes, one less than the
// kernel's MAX_ERRNO (include/linux/err.h).
const maxErrno = 4094

// Profile is a valid seccomp profile: a base, with the features that With has
// added. The zero value is not one.
type Profile struct {
	name     string
	def      seccomp.ScmpAction
	rules    []rule
	features []string // names, in the order of With
}

// rule is what one entry of a profile says about one system call.
type rule struct {
	syscall string
	action  seccomp.ScmpAction
	conds   []seccomp.ScmpCondition // all must hold; none: always
	arches  []string                // GOARCH; none: all
	lifts   bool                    // a feature's: takes the place of a rule of the base
	reason  string
	origins []string // the base's name, those of features
}

// profileFile is the text of a profile: that of the OCI runtime specification
// with a little more in each entry.
type profileFile struct {
	specs.LinuxSeccomp
	Syscalls []profileEntry `json:"syscalls,omitempty"` // instead of LinuxSeccomp's
}

type profileEntry struct {
	specs.LinuxSyscall
	Comment string   `json:"comment,omitempty"` // the reason, as in docker's and Podman's profiles
	Arches  []string `json:"arches,omitempty"`
	Lifts   bool     `json:"lifts,omitempty"`
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
//
// An entry may have two more keys: comment, the reason, and arches, a list of
// GOARCH (amd64, arm64) to which it is limited.
func ParseProfile(name string, data []byte) (Profile, error) {
	var spec profileFile
	if err := decodeStrictly(data, &spec, profileKeys); err != nil {
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

// decodeStrictly decodes one JSON object with these keys and nothing after it.
func decodeStrictly(data []byte, into any, keys []string) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("at byte %d: %w", dec.InputOffset(), err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("at byte %d: more text after the profile", dec.InputOffset())
	}
	return checkKeys(data, keys)
}

// entryKeys has every key of an entry as the specification spells it, and ours.
var entryKeys = []string{
	"syscalls", "names", "action", "errnoRet", "args", "index", "value", "valueTwo", "op", "comment", "arches", "lifts",
}

// profileKeys has every key of a profile.
var profileKeys = append([]string{
	"defaultAction", "defaultErrnoRet", "architectures", "flags", "listenerPath", "listenerMetadata",
}, entryKeys...)

// checkKeys walks over JSON that has been decoded into the profile's type, so it is valid and its
// nesting is bounded. encoding/json takes keys of any case and lets the last of several win:
// both hide mistakes. A Decoder's tokens would do, in ten times the time of a launch.
func checkKeys(data []byte, keys []string) error {
	type level struct {
		object bool
		seen   uint64 // bits, of the keys that are known
	}
	var open []level
	isKey := false
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '{', '[':
			isKey = data[i] == '{'
			open = append(open, level{object: isKey})
		case '}', ']':
			open = open[:len(open)-1]
		case ',':
			isKey = open[len(open)-1].object
		case '"':
			end := endOfString(data, i)
			if isKey {
				key := string(data[i+1 : end])
				bit := slices.Index(keys, key)
				if bit < 0 { // also one that is written with escapes
					return fmt.Errorf("at byte %d: unknown key %q (case matters)", i, key)
				}
				in := &open[len(open)-1]
				if in.seen&(1<<bit) != 0 {
					return fmt.Errorf("at byte %d: key %q twice in one object", i, key)
				}
				in.seen |= 1 << bit
			}
			isKey = false
			i = end
		}
	}
	return nil
}

// endOfString is where the string ends that begins at data[start].
func endOfString(data []byte, start int) int {
	for i := start + 1; i < len(data); i++ {
		switch data[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return len(data)
}

// fill turns the decoded text into rules and returns all problems but unknown names.
func (p *Profile) fill(spec profileFile) []error {
	errs := checkUnsupported(spec.LinuxSeccomp)
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
		rules, err := s.rules(p.name)
		switch {
		case err != nil:
		case rules[0].action == p.def:
			err = errors.New("action: the same as defaultAction, so the entry has no effect: remove it")
		case s.Lifts:
			err = errors.New("lifts: a profile has nothing below it to lift: remove the key")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("syscalls[%d] (%s): %w", i, strings.Join(s.Names, " "), err))
			continue
		}
		p.rules = append(p.rules, rules...)
	}
	return errs
}

// rules returns one rule for each name of an entry, at least one.
func (s profileEntry) rules(origin string) ([]rule, error) {
	if len(s.Names) == 0 {
		return nil, errors.New("names: none")
	}
	action, err := parseAction(s.Action, s.ErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("action: %w", err)
	}
	conds, err := parseArgs(s.Args)
	if err != nil {
		return nil, err
	}
	for _, arch := range s.Arches {
		if _, ok := machines[arch]; !ok {
			return nil, fmt.Errorf("arches: %q is none that is supported: use %s", arch, strings.Join(slices.Sorted(maps.Keys(machines)), ", "))
		}
	}
	var rules []rule
	for _, name := range s.Names {
		rules = append(rules, rule{
			syscall: name, action: action, conds: conds, arches: s.Arches, lifts: s.Lifts,
			reason: s.Comment, origins: []string{origin},
		})
	}
	return rules, nil
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
func unknownSyscalls(entries []profileEntry) error {
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
