package mac

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Access is what a rule grants at its path and below.
type Access uint8

// The kinds of access, to be combined.
const (
	Read    Access = 1 << iota // read files, list directories
	Update                     // write to files that are there
	Write                      // make, write, truncate, move and remove files and directories; includes Read
	Link                       // make symbolic links
	Socket                     // make Unix sockets
	Execute                    // execve, as a program, interpreter or loader; includes reading the file
)

// creating are the accesses that change what is there, or what is executed next.
const creating = Update | Write | Link | Socket

// accessNames are the words of policy files, Execute aside: what is executed is
// not a matter of the kind of service.
var accessNames = []struct {
	name   string
	access Access
}{{"read", Read}, {"update", Update}, {"write", Write}, {"link", Link}, {"socket", Socket}}

func (a Access) String() string {
	var words []string
	for _, n := range accessNames {
		if a&n.access != 0 {
			words = append(words, n.name)
		}
	}
	if a&Execute != 0 {
		words = append(words, "execute")
	}
	return strings.Join(words, " ")
}

// Rule grants access to a file, or to a directory and all below it.
type Rule struct {
	Path     string // absolute and clean
	Access   Access
	Optional bool   // may be missing
	OOMScore bool   // only if the service's oom_score_adj is not 0
	Setting  string // the key of the configuration that the path is from; "" if it is the policy's own
}

// Ports are TCP ports, of which only the listed ones are allowed if Restricted.
type Ports struct {
	Restricted bool
	Allowed    []uint16
}

// RuleSet is everything that a service may do, as far as Landlock sees it.
type RuleSet struct {
	Rules      []Rule
	NeverWrite []string // no rule with a Setting may allow changes at, above or below these paths
	Bind       Ports    // TCP ports to bind to
	Connect    Ports    // TCP ports to connect to, at any address
	Signals    bool     // only to processes of the service
	Abstract   bool     // abstract Unix sockets of the service's own processes only
}

// Digest tells one rule set from another.
func (s RuleSet) Digest() string {
	var text strings.Builder
	for _, r := range s.Rules {
		fmt.Fprintf(&text, "%q %s %t %t\n", r.Path, r.Access, r.Optional, r.OOMScore)
	}
	fmt.Fprintf(&text, "%v %v %t %t\n", s.Bind, s.Connect, s.Signals, s.Abstract)
	sum := sha256.Sum256([]byte(text.String()))
	return hex.EncodeToString(sum[:8])
}

// Fault finds what must not be granted, judged by the paths as they are written.
// Open does the same for the places that they lead to.
func (s RuleSet) Fault() error {
	var errs []error
	for _, r := range s.Rules {
		errs = append(errs, ruleFault(r, s.Rules, s.NeverWrite))
	}
	return errors.Join(errs...)
}

func ruleFault(r Rule, all []Rule, never []string) error {
	name := r.Path
	if r.Setting != "" {
		name = r.Setting + ": " + r.Path
	}
	switch {
	case !filepath.IsAbs(r.Path) || filepath.Clean(r.Path) != r.Path:
		return fmt.Errorf("%s: use an absolute path without . or .. in it", name)
	case r.Path == "/":
		return fmt.Errorf("%s: is everything: name what the service needs", name)
	case r.Access == 0:
		return fmt.Errorf("%s: grants nothing", name)
	case r.Access&creating == 0:
		return nil
	}
	for _, other := range all {
		if other.Access&Execute != 0 && Beneath(other.Path, r.Path) {
			return fmt.Errorf("%s: the service could change %s there, which it may execute: keep the two apart", name, other.Path)
		}
	}
	if r.Setting == "" {
		return nil // the policy's own, such as /dev/shm
	}
	for _, path := range never {
		if Beneath(r.Path, path) || Beneath(path, r.Path) {
			return fmt.Errorf("%s: a service must not write to %s: name another directory", name, path)
		}
	}
	return nil
}

// Beneath says whether a path is another or below it; both are clean.
func Beneath(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// portsText is for people.
func (p Ports) String() string {
	if !p.Restricted {
		return "any"
	}
	ports := slices.Clone(p.Allowed)
	slices.Sort(ports)
	return strings.Trim(fmt.Sprint(slices.Compact(ports)), "[]")
}
