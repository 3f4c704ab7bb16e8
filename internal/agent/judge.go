package agent

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/learn"
	"github.com/pghardend/pghardend/pkg/mac"
)

// newJudge says what the profile and the configuration of a service allow. Links
// are followed now, as the launch stage does.
func newJudge(ctx context.Context, spec launch.Spec) (learn.Judge, error) {
	j := learn.Judge{
		Call:  func(c learn.Call) bool { return spec.Seccomp.Allows(c.Name, c.Args) },
		File:  func(learn.Access, string) bool { return true },
		Port:  func(uint16, bool) bool { return true },
		Names: spec.Seccomp.AllowedNames(),
	}
	if spec.Landlock.Mode == "" || spec.Landlock.Mode == launch.LandlockOff {
		return j, nil
	}
	programs, err := launch.Executables(ctx, spec)
	if err != nil {
		return j, err
	}
	for i, p := range programs {
		programs[i] = realPath(p)
	}
	rules := slices.Clone(spec.Landlock.Rules.Rules)
	for i := range rules {
		rules[i].Path = realPath(rules[i].Path)
	}
	j.File = func(access learn.Access, p string) bool {
		p = concrete(p, realPath(spec.DataDir))
		if access == learn.Execute {
			return slices.Contains(programs, p)
		}
		return slices.ContainsFunc(rules, func(r mac.Rule) bool { return mac.Beneath(p, r.Path) && grants(r.Access, access) })
	}
	set := spec.Landlock.Rules
	j.Port = func(port uint16, listen bool) bool {
		ports := set.Connect
		if listen {
			ports = set.Bind
		}
		return !ports.Restricted || slices.Contains(ports.Allowed, port)
	}
	return j, nil
}

// grants knows that Write includes reading, and updating too.
func grants(has mac.Access, needs learn.Access) bool {
	switch needs {
	case learn.Read:
		return has&(mac.Read|mac.Write) != 0
	case learn.Update:
		return has&(mac.Update|mac.Write) != 0
	case learn.Write:
		return has&mac.Write != 0
	case learn.Link:
		return has&mac.Link != 0
	case learn.Socket:
		return has&mac.Socket != 0
	}
	return false
}

// concrete turns a path of a recording into one that rules can be compared with.
func concrete(p, dataDir string) string {
	p = strings.NewReplacer("{data_dir}", dataDir, "{pid}", "self").Replace(p)
	return filepath.Clean(p)
}

func realPath(p string) string {
	if place, err := filepath.EvalSymlinks(p); err == nil {
		return place
	}
	return p
}
