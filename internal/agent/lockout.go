package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/pghardend/pghardend/pkg/firewall"
)

const (
	controlPlane = "control_plane"
	sshPort      = 22
)

// checkLockOut refuses a state in which operators cannot log in by ssh any more,
// so that no file change alone shuts them out. Where they could not before,
// nothing is taken from them; old is nil if nothing was in force.
func checkLockOut(old *Desired, next Desired) error {
	if old != nil && !letsOperatorsIn(*old) || letsOperatorsIn(next) {
		return nil
	}
	where, what := next.Config.Where("flows"), "no row lets control_plane connect to tcp port 22 of the role "+next.Self.Role
	switch {
	case len(next.Firewall.Members[controlPlane]) == 0:
		where, what = next.Peers.Where("networks."+controlPlane), "networks.control_plane has no entry"
	case !reachable(next):
		where, what = next.Peers.Where("networks."+controlPlane), "networks.control_plane has no entry of an address family that this node has"
	}
	return fmt.Errorf("%s: %s, so nobody could log in to this node by ssh; correct that, or accept it with `pghardend apply --force`",
		where, what)
}

// letsOperatorsIn says whether control_plane may connect to this node's ssh, as
// far as these rules are what decides.
func letsOperatorsIn(d Desired) bool {
	return leftToTheHost(d.Firewall) || reachable(d) && slices.ContainsFunc(d.Firewall.Flows, func(f firewall.Flow) bool {
		return f.Proto == firewall.ProtoTCP && slices.Contains(f.Ports, sshPort) &&
			slices.Contains(f.From, controlPlane) && slices.Contains(f.To, d.Self.Role)
	})
}

// reachable says whether somebody in control_plane can have a way to this node.
func reachable(d Desired) bool {
	return slices.ContainsFunc(d.Firewall.Members[controlPlane], func(p netip.Prefix) bool {
		return slices.ContainsFunc(d.Self.Addresses, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() })
	})
}

// leftToTheHost says whether the scope leaves all of control_plane to the host's
// own firewall.
func leftToTheHost(s firewall.Spec) bool {
	return s.Scope == firewall.ScopeSiblings && !slices.ContainsFunc(s.Members[controlPlane], func(p netip.Prefix) bool {
		return slices.ContainsFunc(s.Members[firewall.NetworkSiblings], p.Overlaps)
	})
}
