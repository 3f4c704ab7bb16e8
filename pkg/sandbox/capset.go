package sandbox

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// CapSet is a set of capabilities: bit n stands for capability number n, as in
// linux/capability.h and in /proc/PID/status.
type CapSet uint64

// Has tells whether capability number n is in the set.
func (c CapSet) Has(n int) bool { return n >= 0 && n < 64 && c&(1<<n) != 0 }

// String names the capabilities, comma separated, in the order of their numbers;
// "none" if there are none. One without a known name is cap_N.
func (c CapSet) String() string {
	if c == 0 {
		return "none"
	}
	names := capNames()
	var out []string
	for rest := c; rest != 0; rest &= rest - 1 {
		n := bits.TrailingZeros64(uint64(rest))
		if n < len(names) {
			out = append(out, names[n])
		} else {
			out = append(out, fmt.Sprintf("cap_%d", n))
		}
	}
	return strings.Join(out, ",")
}

// ParseCapabilities turns names (CAP_NET_ADMIN, cap_net_admin) into a set. All
// unknown ones are listed together. That the kernel has the capability and that
// this process may keep it is seen by DropBounding.
func ParseCapabilities(names []string) (CapSet, error) {
	known := capNames()
	var set CapSet
	var unknown []string
	for _, name := range names {
		n := slices.Index(known, strings.ToLower(name))
		if n < 0 {
			unknown = append(unknown, fmt.Sprintf("%q", name))
			continue
		}
		set |= 1 << n
	}
	if len(unknown) > 0 {
		return 0, fmt.Errorf("unknown capabilities: %s: write them as in capabilities(7), such as CAP_NET_ADMIN",
			strings.Join(unknown, ", "))
	}
	return set, nil
}

// checkKernelHas refuses a set with bits that are no capability of this kernel.
func checkKernelHas(set, all CapSet) error {
	if missing := set &^ all; missing != 0 {
		return errors.New("this kernel does not have " + missing.String())
	}
	return nil
}
