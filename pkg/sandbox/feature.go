package sandbox

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	seccomp "github.com/seccomp/libseccomp-golang"
)

// Feature is a fragment of a seccomp profile: what a service needs beyond its
// base for one thing that not all need. It is immutable.
type Feature struct {
	name        string
	description string
	bases       []string
	optIn       bool
	rules       []rule
}

// featureFile is the text of a feature.
type featureFile struct {
	Description string         `json:"description"`
	Bases       []string       `json:"bases"` // names of the profiles that it is for
	OptIn       bool           `json:"optIn"`
	Syscalls    []profileEntry `json:"syscalls"`
}

var featureKeys = append([]string{"description", "bases", "optIn"}, entryKeys...)

// ParseFeature reads a feature as strictly as ParseProfile reads a profile, whose
// entries it has. Every entry needs a comment.
//
// An entry with "lifts": true takes the place of what the base says: without
// args of all its rules on the call, with args of the one rule with the same args
// and another action. Without it a feature can only add.
func ParseFeature(name string, data []byte) (Feature, error) {
	var file featureFile
	if err := decodeStrictly(data, &file, featureKeys); err != nil {
		return Feature{}, fmt.Errorf("cannot read seccomp feature %s: %w", name, err)
	}
	f := Feature{name: name, description: file.Description, bases: file.Bases, optIn: file.OptIn}
	errs := []error{unknownSyscalls(file.Syscalls)}
	if f.description == "" || len(f.bases) == 0 || len(file.Syscalls) == 0 {
		errs = append(errs, errors.New("description, bases and syscalls: each must be there and not empty"))
	}
	for i, s := range file.Syscalls {
		rules, err := s.rules(name)
		if err == nil && s.Comment == "" {
			err = errors.New("comment: missing: say what the entry is for")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("syscalls[%d] (%s): %w", i, strings.Join(s.Names, " "), err))
		}
		f.rules = append(f.rules, rules...)
	}
	if errors.Join(errs...) == nil {
		errs = append(errs, Profile{rules: f.rules}.checkOverlap())
	}
	if err := errors.Join(errs...); err != nil {
		return Feature{}, fmt.Errorf("cannot use seccomp feature %s: %w", name, err)
	}
	return f, nil
}

// Name is the name that ParseFeature was given.
func (f Feature) Name() string { return f.name }

// Description says for people what the feature is.
func (f Feature) Description() string { return f.description }

// OptIn says whether the feature gives an attacker so much that the administrator
// alone may choose it, and nothing that a service can write.
func (f Feature) OptIn() bool { return f.optIn }

// For says whether the feature can be added to a profile of this name.
func (f Feature) For(profile string) bool { return slices.Contains(f.bases, profile) }

// With adds features to a profile; their order does not matter. What a feature
// says as the base or another feature does is there once. It fails if a feature
// is not for the profile or is there twice, lifts what the base does not have,
// or contradicts the base or another feature.
func (p Profile) With(features ...Feature) (Profile, error) {
	out := Profile{name: p.name, def: p.def, rules: slices.Clone(p.rules), features: slices.Clone(p.features)}
	var errs []error
	for _, f := range features {
		switch {
		case slices.Contains(out.features, f.name):
			errs = append(errs, fmt.Errorf("feature %s: twice", f.name))
		case !f.For(p.name):
			errs = append(errs, fmt.Errorf("feature %s: it is for %s only", f.name, strings.Join(f.bases, ", ")))
		}
		out.features = append(out.features, f.name)
		errs = append(errs, out.lift(p, f))
	}
	for _, f := range features {
		for _, r := range f.rules {
			if r.action == p.def {
				errs = append(errs, fmt.Errorf("feature %s: %s: the same as the default of %s, so it has no effect: remove it", f.name, r.syscall, p.name))
			}
			out.add(r)
		}
	}
	if errors.Join(errs...) == nil {
		errs = append(errs, out.checkOverlap())
	}
	if err := errors.Join(errs...); err != nil {
		return Profile{}, fmt.Errorf("cannot use seccomp profile %s with %s: %w", p.name, strings.Join(out.features, ", "), err)
	}
	return out, nil
}

// lift takes away the rules of the base that a feature replaces. Another feature
// may have lifted the same ones.
func (p *Profile) lift(base Profile, f Feature) error {
	var errs []error
	for _, r := range f.rules {
		if !r.lifts {
			continue
		}
		lifted := func(b rule) bool {
			return b.syscall == r.syscall && (len(r.conds) == 0 || b.action != r.action && sameConditions(b, r))
		}
		if !slices.ContainsFunc(base.rules, lifted) {
			errs = append(errs, fmt.Errorf("feature %s: %s: it lifts what %s does not say: remove lifts, or correct the args", f.name, r.syscall, base.name))
		}
		p.rules = slices.DeleteFunc(p.rules, func(b rule) bool { return lifted(b) && slices.Equal(b.origins, []string{base.name}) })
	}
	return errors.Join(errs...)
}

// add adds a rule, or its origin to one that says the same.
func (p *Profile) add(r rule) {
	for i, o := range p.rules {
		if o.syscall != r.syscall || o.action != r.action || !sameConditions(o, r) {
			continue
		}
		o.origins = append(slices.Clone(o.origins), r.origins...)
		if r.reason != o.reason {
			o.reason += "; " + r.reason
		}
		if len(o.arches) == 0 || len(r.arches) == 0 {
			o.arches = nil
		} else {
			o.arches = slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(o.arches), r.arches...))))
		}
		p.rules[i] = o
		return
	}
	p.rules = append(p.rules, r)
}

func sameConditions(a, b rule) bool {
	order := func(x, y seccomp.ScmpCondition) int { return int(x.Argument) - int(y.Argument) }
	return slices.Equal(slices.SortedFunc(slices.Values(a.conds), order), slices.SortedFunc(slices.Values(b.conds), order))
}
