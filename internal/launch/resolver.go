package launch

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// resolverVariable and resolverByTCP make the C library ask for host names by TCP, resolv.conf(5).
const (
	resolverVariable = "RES_OPTIONS"
	resolverByTCP    = "use-vc"
)

// variables are those that the service is started with on top of the allow-list. One
// that may make no UDP sockets has to ask for names by TCP, unless it is told otherwise.
func (spec Spec) variables() []string {
	told := slices.ContainsFunc(spec.Environment, func(v string) bool { return strings.HasPrefix(v, resolverVariable+"=") })
	if told || spec.Seccomp.Allows("socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, 0}) {
		return spec.Environment
	}
	return append(slices.Clone(spec.Environment), resolverVariable+"="+resolverByTCP)
}
