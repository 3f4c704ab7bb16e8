package agent

import (
	"fmt"
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
	if old != nil && !letsOperatorsIn(old.Firewall) {
		return nil
	}
	spec := next.Firewall
	if letsOperatorsIn(spec) {
		return nil
	}
	where, what := next.Config.Where("flows"), "no row lets control_plane connect to tcp port 22 of the role "+spec.Role
	if len(spec.Members[controlPlane]) == 0 {
		where, what = next.Peers.Where("networks."+controlPlane), "networks.control_plane has no entry"
	}
	return fmt.Errorf("%s: %s, so nobody could log in to this node by ssh; correct that, or accept it with `pghardend apply --force`",
		where, what)
}

// letsOperatorsIn says whether control_plane may connect to this node's ssh.
func letsOperatorsIn(s firewall.Spec) bool {
	return len(s.Members[controlPlane]) > 0 && slices.ContainsFunc(s.Flows, func(f firewall.Flow) bool {
		return f.Proto == firewall.ProtoTCP && slices.Contains(f.Ports, sshPort) &&
			slices.Contains(f.From, controlPlane) && slices.Contains(f.To, s.Role)
	})
}
