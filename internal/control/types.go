package control

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// States of the whole.
const (
	StateOK       = "ok"
	StateDegraded = "degraded"
)

// Status is what `pghardend status --json` prints.
type Status struct {
	Version       string    `json:"version"`
	Node          string    `json:"node"`
	Role          string    `json:"role"`
	Instance      string    `json:"instance"`
	State         string    `json:"state"`
	Reasons       []string  `json:"reasons"` // why the state is degraded
	PID           int       `json:"pid"`     // the daemon's; 0 if none runs
	Backend       string    `json:"backend"`
	Generation    uint64    `json:"generation"`
	LastReconcile time.Time `json:"last_reconcile"`
	LastLook      time.Time `json:"last_look"` // last compared with the kernel, thoroughly or cheaply
	Alarms        string    `json:"alarms"`    // what announces drift: notifications of nf_tables, audit, or polls alone
	Layers        []Layer   `json:"layers"`
	Services      []Service `json:"services"`
	Drift         []Drift   `json:"drift"`    // oldest first
	Openings      []Opening `json:"openings"` // in force, oldest first
	Denials       Denials   `json:"denials"`
	Warnings      []string  `json:"warnings"` // what an operator should know, though nothing is wrong with our own
	Pending       *Pending  `json:"pending,omitempty"`
}

// Layer is one layer of one subject: the node or a service.
type Layer struct {
	Name       string `json:"name"`
	Subject    string `json:"subject"`    // "node" or a service's name
	Configured bool   `json:"configured"` // asked for
	Enforced   bool   `json:"enforced"`   // read back from the kernel just now
	Detail     string `json:"detail"`
	Mode       string `json:"mode,omitempty"` // complain, if that is why it is not enforced
}

// Service is the life of one service.
type Service struct {
	Name      string    `json:"name"`
	State     string    `json:"state"`
	PID       int       `json:"pid"`
	Processes int       `json:"processes"` // of the service's tree, each of them checked
	Since     time.Time `json:"since"`
	Adopted   bool      `json:"adopted"` // taken over from an earlier daemon
	Restarts  int       `json:"restarts"`
	LastError string    `json:"last_error"`
}

// Drift is one resource that was not as desired, and its repair.
type Drift struct {
	ID       uint64    `json:"id"` // counts from the daemon's start
	Resource string    `json:"resource"`
	Cause    string    `json:"cause"`   // start, change or drift
	Trigger  string    `json:"trigger"` // how it was found: event, tick, full, request …
	What     string    `json:"what"`
	Since    time.Time `json:"since"`    // last seen to be right
	Found    time.Time `json:"found"`    // seen to be wrong
	Repaired time.Time `json:"repaired"` // zero if it was not repaired
	OpenMS   float64   `json:"open_ms"`  // at most so long
	Who      *Culprit  `json:"who,omitempty"`
	Restart  bool      `json:"restart,omitempty"` // only a restart of the service puts it right
	Error    string    `json:"error,omitempty"`
	Asked    string    `json:"asked,omitempty"` // who was asked to put it right, where the daemon's unit does not let it
}

// Culprit is the process that changed something, as far as it was still there to
// be looked at.
type Culprit struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	UID     int    `json:"uid"`              // -1: unknown
	Exe     string `json:"exe,omitempty"`    // its executable
	Args    string `json:"args,omitempty"`   // its command line, cut
	Parent  string `json:"parent,omitempty"` // who started it, as "fail2ban-server (812)"
}

// Kinds of an Event beside the causes of a Drift.
const (
	KindConflict = "conflict"       // somebody changes our rules again and again
	KindRestart  = "restart-needed" // a Drift that cannot be put back in place
	KindOpening  = "opening"
	KindDaemon   = "daemon"
	KindProfile  = "profile"  // a service was started with other features than before
	KindDenied   = "denied"   // a service may not what it tried; Resource is the service
	KindComplain = "complain" // what a profile would have denied
)

// String is the culprit for people, in one line.
func (c Culprit) String() string {
	name := c.Args
	if name == "" {
		name = c.Command
	}
	var about []string
	if c.PID > 0 {
		about = append(about, fmt.Sprintf("pid %d", c.PID))
	}
	if c.UID >= 0 {
		about = append(about, fmt.Sprintf("uid %d", c.UID))
	}
	if c.Exe != "" {
		about = append(about, c.Exe)
	}
	if c.Parent != "" {
		about = append(about, "by "+c.Parent)
	}
	name = cmp.Or(name, "unknown")
	if len(about) == 0 {
		return name
	}
	return fmt.Sprintf("%s (%s)", name, strings.Join(about, ", "))
}

// Event is one record of the journal. Records with the same Boot, PID and ID (not
// 0) tell of the same Drift; the last of them counts.
type Event struct {
	Seq  uint64    `json:"seq"`  // the order, also where the clock was set
	At   time.Time `json:"at"`   // when it was written down
	Boot string    `json:"boot"` // the kernel's boot id
	PID  int       `json:"pid"`  // the daemon's
	Kind string    `json:"kind"`
	Lost int       `json:"lost,omitempty"` // records before this one that were lost
	Drift
}

// Opening is a hole in the rules that closes by itself.
type Opening struct {
	ID      string       `json:"id"`
	From    netip.Prefix `json:"from"`
	Proto   string       `json:"proto"` // tcp or udp
	Port    uint16       `json:"port"`
	Opened  time.Time    `json:"opened"`
	Until   time.Time    `json:"until"`
	Reason  string       `json:"reason"`
	By      string       `json:"by"`       // who asked for it
	Ended   time.Time    `json:"ended"`    // zero while it is open
	EndedBy string       `json:"ended_by"` // empty while it is open
}

// Pending is a change that goes back unless it is confirmed.
type Pending struct {
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
}

// ApplyRequest is what Apply is asked to do.
type ApplyRequest struct {
	Force         bool          // accept an input that is suspicious
	ConfirmWithin time.Duration // put the state before back after this time, unless confirmed; 0: keep the change
}

// OpenRequest asks for an Opening.
type OpenRequest struct {
	From   netip.Prefix
	Proto  string
	Port   uint16
	For    time.Duration
	Reason string
	By     string // who asks; the server takes it from the socket, not from the request
}

// openBody is an OpenRequest on its way. A duration is written as 30m.
type openBody struct {
	From   netip.Prefix `json:"from"`
	Proto  string       `json:"proto"`
	Port   uint16       `json:"port"`
	For    string       `json:"for"`
	Reason string       `json:"reason"`
}
