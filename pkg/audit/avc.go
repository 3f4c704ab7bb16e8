package audit

import (
	"fmt"
	"strings"
	"time"
)

// TypeAVC is the type of records of SELinux's decisions, linux/audit.h. They come
// whether or not auditing is enabled.
const TypeAVC uint16 = 1400

// AVC is one decision of SELinux's: something that was denied, or that is granted but
// recorded (auditallow).
type AVC struct {
	At          time.Time // as in Change
	Granted     bool
	Permissive  bool // denied it was not, but would have been
	Permissions []string
	PID         int
	Command     string // of any content, as are the next two
	Path        string // of what was accessed, or its name alone; empty where it has none
	Source      string // label of the process
	Target      string // label of what was accessed
	Class       string // of that: file, process, tcp_socket …
	Port        int    // 0 if it is not about one
}

// avc reads `avc:  denied  { read write } for  pid=1 comm="x" … tclass=file permissive=0`,
// avc_audit_pre_callback in security/selinux/avc.c.
func (f fields) avc(at time.Time) (*AVC, error) {
	head, rest, found := strings.Cut(f.text, "{")
	list, _, closed := strings.Cut(rest, "}")
	granted := strings.Contains(head, "granted")
	if !found || !closed || !granted && !strings.Contains(head, "denied") {
		return nil, fmt.Errorf("no decision in %q", f.text)
	}
	a := &AVC{
		At: at, Granted: granted, Permissive: f.values["permissive"] == "1", Permissions: strings.Fields(list),
		PID: f.number("pid", 0), Command: f.untrusted("comm"), Path: f.untrusted("path"),
		Source: f.values["scontext"], Target: f.values["tcontext"], Class: f.values["tclass"],
	}
	if a.Path == "" {
		a.Path = f.untrusted("name")
	}
	if a.Port = f.number("dest", 0); a.Port == 0 {
		a.Port = f.number("src", 0)
	}
	if a.Source == "" || a.Class == "" {
		return nil, fmt.Errorf("no scontext and tclass in %q", f.text)
	}
	return a, nil
}
