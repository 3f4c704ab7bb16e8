package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/pkg/firewall"
)

// What an opening may be.
const (
	minOpen   = time.Minute
	maxOpen   = 24 * time.Hour
	maxReason = 200 // characters

	// widest prefixes: a /8 is the largest block that one network has, a /7 all
	// unique local addresses (RFC 4193).
	widestIPv4 = 8
	widestIPv6 = 7
)

// checkOpening says what is wrong with a wish. siblings are the shared subnets:
// a hole for a part of these would let neighbours in, so that only single
// addresses of them may be let through.
func checkOpening(r control.OpenRequest, siblings []netip.Prefix) error {
	return errors.Join(
		checkFrom(r.From, siblings),
		checkService(r.Proto, r.Port),
		checkTime("--for", r.For, minOpen, maxOpen),
		checkReason(r.Reason))
}

func checkFrom(p netip.Prefix, siblings []netip.Prefix) error {
	widest := widestIPv4
	if p.Addr().Is6() {
		widest = widestIPv6
	}
	a := p.Addr()
	switch {
	case !p.IsValid():
		return errors.New("--from: give an address or a network such as 192.0.2.7 or 192.0.2.0/24")
	case a.Is4In6():
		return fmt.Errorf("--from: %s is an IPv4 address in IPv6's clothes; write %s", a, a.Unmap())
	case p.Bits() == 0:
		return fmt.Errorf("--from: %s is every address there is; name those that have to get in", p)
	case p.Bits() < widest:
		return fmt.Errorf("--from: %s is wider than /%d; name those that have to get in", p, widest)
	case p != p.Masked():
		return fmt.Errorf("--from: %s has bits behind its length; write %s or %s", p, a, p.Masked())
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast():
		return fmt.Errorf("--from: nobody else sends from %s", p)
	case p.IsSingleIP():
		return nil
	}
	for _, s := range siblings {
		if s.Overlaps(p) {
			return fmt.Errorf("--from: %s is shared with siblings (%s), so it may only be opened address by address", p, s)
		}
	}
	return nil
}

func checkService(proto string, port uint16) error {
	switch {
	case proto != firewall.ProtoTCP && proto != firewall.ProtoUDP:
		return fmt.Errorf("--proto: %q cannot be opened; use tcp or udp", proto)
	case port == 0:
		return errors.New("--port: give a port from 1 to 65535")
	}
	return nil
}

func checkTime(flag string, d, least, most time.Duration) error {
	if d < least || d > most {
		return fmt.Errorf("%s: %v is out of range; give a time from %v to %v", flag, d, least, most)
	}
	return nil
}

// checkReason: it goes into logs and onto terminals.
func checkReason(s string) error {
	switch {
	case strings.TrimSpace(s) == "":
		return errors.New("--reason: say why, for those who find the opening")
	case utf8.RuneCountInString(s) > maxReason:
		return fmt.Errorf("--reason: at most %d characters", maxReason)
	case !utf8.ValidString(s), strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return errors.New("--reason: one line of printable characters, please")
	}
	return nil
}
