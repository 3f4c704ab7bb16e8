package audit

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/elastic/go-libaudit/v2/auparse"
	"golang.org/x/sys/unix"
)

// Unknown is a UID that is not known.
const Unknown = -1

// Change is one change of a netfilter table, NETFILTER_CFG.
type Change struct {
	At      time.Time // of the record by the wall clock; from a Watcher: when it was received
	Table   string    // filter; filter:13 on nf_tables, the table and its generation. Of any content
	Family  string    // ipv4, ipv6, inet, bridge, arp or netdev, else the kernel's number
	Op      string    // xt_replace, nft_register_rule …; empty before Linux 5.8
	Entries int
	PID     int    // as the first pid namespace counts; 0 before Linux 5.8
	UID     int    // Unknown: the kernel leaves it to the record of the syscall
	Command string // its name, at most 15 bytes, of any content; empty before Linux 5.8
}

// Actions of a Denial, seccomp(2).
const (
	ActionKill   = "kill" // the process or the thread
	ActionTrap   = "trap"
	ActionErrno  = "errno"
	ActionNotify = "notify"
	ActionTrace  = "trace"
	ActionLog    = "log" // it was let through
)

// Denial is one syscall that a seccomp filter caught, SECCOMP.
type Denial struct {
	At      time.Time // as in Change
	PID     int
	UID     int    // Unknown if the record has none
	Command string // of any content
	Exe     string // of any content
	Arch    string // x86_64, aarch64 …
	Syscall string // its name, else its number
	Known   bool   // Syscall is a name
	Action  string // one of those above, else the kernel's number
}

// Record is one of the three; the others are nil.
type Record struct {
	Change *Change
	Denial *Denial
	AVC    *AVC
}

// Types of records, linux/audit.h.
const (
	TypeNetfilter uint16 = 1325
	TypeSeccomp   uint16 = 1326
)

// Parse reads a record of the given type as the kernel sends it. ok is false
// for other types than the three.
func Parse(typ uint16, text []byte) (r Record, ok bool, err error) {
	if typ != TypeNetfilter && typ != TypeSeccomp && typ != TypeAVC {
		return Record{}, false, nil
	}
	msg, err := auparse.Parse(auparse.AuditMessageType(typ), strings.TrimRight(string(text), "\x00"))
	if err != nil {
		return Record{}, false, fmt.Errorf("cannot read an audit record: %w", err)
	}
	f := fields{text: msg.RawData, values: map[string]string{}}
	for _, word := range strings.Fields(msg.RawData) {
		if key, value, found := strings.Cut(word, "="); found {
			f.values[key] = value
		}
	}
	switch typ {
	case TypeNetfilter:
		r.Change, err = f.change(msg.Timestamp)
	case TypeAVC:
		r.AVC, err = f.avc(msg.Timestamp)
	default:
		r.Denial, err = f.denial(msg.Timestamp)
	}
	if err != nil {
		return Record{}, false, fmt.Errorf("cannot read an audit record: %w", err)
	}
	return r, true, nil
}

// fields of one record.
type fields struct {
	text   string
	values map[string]string // the last of each name
}

func (f fields) change(at time.Time) (*Change, error) {
	table, err := f.table()
	if err != nil {
		return nil, err
	}
	return &Change{
		At: at, Table: table, Family: family(f.values["family"]), Op: f.values["op"],
		Entries: f.number("entries", 0), PID: f.number("pid", 0), UID: f.number("uid", Unknown), Command: f.untrusted("comm"),
	}, nil
}

// table is whatever stands between its key and the last of the next one.
func (f fields) table() (string, error) {
	_, rest, found := strings.Cut(f.text, " table=")
	end := strings.LastIndex(rest, " family=")
	if !found || end < 0 {
		return "", fmt.Errorf("no table and family in %q", f.text)
	}
	return rest[:end], nil
}

func (f fields) denial(at time.Time) (*Denial, error) {
	arch, err := strconv.ParseUint(f.values["arch"], 16, 32)
	if err != nil {
		return nil, fmt.Errorf("arch: %w in %q", err, f.text)
	}
	nr, err := strconv.Atoi(f.values["syscall"])
	if err != nil {
		return nil, fmt.Errorf("syscall: %w in %q", err, f.text)
	}
	d := &Denial{
		At: at, PID: f.number("pid", 0), UID: f.number("uid", Unknown), Command: f.untrusted("comm"), Exe: f.untrusted("exe"),
		Arch: auparse.AuditArch(arch).String(), Action: action(f.values["code"]),
	}
	if d.Syscall, d.Known = auparse.AuditSyscalls[d.Arch][nr]; !d.Known {
		d.Syscall = strconv.Itoa(nr)
	}
	return d, nil
}

// number is other if the field is missing, unset (4294967295) or not a number.
func (f fields) number(key string, other int) int {
	n, err := strconv.ParseInt(f.values[key], 10, 32)
	if err != nil || n < 0 {
		return other
	}
	return int(n)
}

// untrusted undoes audit_log_untrustedstring: "quoted", or hex.
func (f fields) untrusted(key string) string {
	value := f.values[key]
	if inner, ok := strings.CutPrefix(value, `"`); ok {
		return strings.TrimSuffix(inner, `"`)
	}
	text, err := hex.DecodeString(value)
	if err != nil {
		return "" // (null), and ? where it could not be read
	}
	return string(text)
}

// families by address family, or hook family of nf_tables, linux/netfilter.h.
var families = map[string]string{"1": "inet", "2": "ipv4", "3": "arp", "5": "netdev", "7": "bridge", "10": "ipv6"}

func family(number string) string {
	if name, ok := families[number]; ok {
		return name
	}
	return number
}

func action(code string) string {
	n, err := strconv.ParseUint(strings.TrimPrefix(code, "0x"), 16, 32)
	if err != nil {
		return code
	}
	switch n & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_KILL_PROCESS, unix.SECCOMP_RET_KILL_THREAD:
		return ActionKill
	case unix.SECCOMP_RET_TRAP:
		return ActionTrap
	case unix.SECCOMP_RET_ERRNO:
		return ActionErrno
	case unix.SECCOMP_RET_USER_NOTIF:
		return ActionNotify
	case unix.SECCOMP_RET_TRACE:
		return ActionTrace
	case unix.SECCOMP_RET_LOG:
		return ActionLog
	}
	return code
}
