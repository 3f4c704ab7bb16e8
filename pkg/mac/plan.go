package mac

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Rights on files, by the version that brought them.
const (
	rightsRead   = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	rightsChange = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_REFER
	rightsNobody = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV

	rightsAll = rightsRead | rightsChange | rightsNobody | unix.LANDLOCK_ACCESS_FS_EXECUTE |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK

	// rightsFile are those that a file which is no directory can have; the kernel
	// refuses others.
	rightsFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
		unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
)

// rights turns an access into the kernel's bits.
func (a Access) rights() (bits uint64) {
	for _, m := range []struct {
		access Access
		rights uint64
	}{
		{Read, rightsRead}, {Update, unix.LANDLOCK_ACCESS_FS_WRITE_FILE}, {Write, rightsRead | rightsChange},
		{Link, unix.LANDLOCK_ACCESS_FS_MAKE_SYM}, {Socket, unix.LANDLOCK_ACCESS_FS_MAKE_SOCK},
		{Execute, unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE},
	} {
		if a&m.access != 0 {
			bits |= m.rights
		}
	}
	return bits
}

// Plan is what a kernel makes of a rule set.
type Plan struct {
	Set      RuleSet
	ABI      int       // of the kernel, or the newest known here if that is less
	Enforced []Feature // what the kernel enforces of Set
	Missing  []Feature // what it cannot, being too old

	files, net, scoped uint64
	flags              uintptr
}

// ErrUnsupported is a kernel without Landlock, or with too little of it.
var ErrUnsupported = errors.New("the kernel does not support Landlock")

// newestABI is the newest version whose features are used.
const newestABI = 7

// Compile decides what a kernel of an ABI version, as [ABI] returns it, is asked
// for. oomScore says whether the service's oom_score_adj differs from 0. The error
// wraps ErrUnsupported if the version is below MinABI.
func Compile(set RuleSet, abi int, oomScore bool) (Plan, error) {
	if abi < MinABI {
		return Plan{}, fmt.Errorf("%w well enough (ABI %d): Linux 5.19 (ABI %d) is needed", ErrUnsupported, abi, MinABI)
	}
	if err := set.Fault(); err != nil {
		return Plan{}, err
	}
	set.Rules = slices.DeleteFunc(slices.Clone(set.Rules), func(r Rule) bool { return r.OOMScore && !oomScore })
	p := Plan{Set: set, ABI: min(abi, newestABI)}
	p.files = rightsAll
	p.want(featureFiles, true, func() {})
	p.want(featureRefer, true, func() {})
	if !p.want(featureTruncate, true, func() {}) {
		p.files &^= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if !p.want(featureIoctl, true, func() {}) {
		p.files &^= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	p.want(featureBind, set.Bind.Restricted, func() { p.net |= unix.LANDLOCK_ACCESS_NET_BIND_TCP })
	p.want(featureConnect, set.Connect.Restricted, func() { p.net |= unix.LANDLOCK_ACCESS_NET_CONNECT_TCP })
	p.want(featureSignals, set.Signals, func() { p.scoped |= unix.LANDLOCK_SCOPE_SIGNAL })
	p.want(featureAbstract, set.Abstract, func() { p.scoped |= unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET })
	// Denials before the execve are our own probes; those after it are news.
	p.want(featureAudit, true, func() {
		p.flags = unix.LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF | unix.LANDLOCK_RESTRICT_SELF_LOG_NEW_EXEC_ON
	})
	return p, nil
}

// want adds a feature that the rule set asks for to one of the two lists.
func (p *Plan) want(f Feature, asked bool, enforce func()) bool {
	switch {
	case !asked:
		return false
	case p.ABI < f.ABI:
		p.Missing = append(p.Missing, f)
		return false
	}
	p.Enforced = append(p.Enforced, f)
	enforce()
	return true
}

// ScopesAbstract says whether abstract sockets from outside are out of reach.
func (p Plan) ScopesAbstract() bool { return p.scoped&unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET != 0 }

// Names are the names of features.
func Names(features []Feature) []string {
	names := make([]string, len(features))
	for i, f := range features {
		names[i] = f.Name
	}
	return names
}

// FeatureText is a list for people.
func FeatureText(features []Feature) string {
	text := make([]string, len(features))
	for i, f := range features {
		text[i] = f.String()
	}
	return strings.Join(text, ", ")
}
