package drill

import "slices"

// Layer is one of the layers of a service.
type Layer string

// The layers. SELinux is listed for completeness: a drill does not put it in force.
const (
	DAC          Layer = "dac" // uid, gid, groups
	Capabilities Layer = "capabilities"
	Limits       Layer = "rlimits"
	Cgroup       Layer = "cgroup"
	Seccomp      Layer = "seccomp"
	Landlock     Layer = "landlock"
	Mounts       Layer = "mounts" // nothing that can be written to is code
	Netfilter    Layer = "netfilter"
	SELinux      Layer = "selinux"
)

// askedIn is the order in which the kernel asks: seccomp when a call is entered,
// limits, groups and mount options in the call itself, permissions and capabilities before
// the security modules, netfilter when there is a packet.
var askedIn = []Layer{Seccomp, Limits, Cgroup, Mounts, DAC, Capabilities, Landlock, SELinux, Netfilter}

// Layers are all layers.
func Layers() []Layer { return slices.Clone(askedIn) }

// launched are the layers that the launch stage puts in force.
var launched = []Layer{DAC, Capabilities, Limits, Seccomp, Landlock, Mounts, Cgroup}

// with adds a layer, keeping the order of askedIn.
func with(base []Layer, more ...Layer) []Layer {
	var all []Layer
	for _, l := range askedIn {
		if slices.Contains(base, l) || slices.Contains(more, l) {
			all = append(all, l)
		}
	}
	return all
}

// forLaunch are those of the layers that are the launch stage's.
func forLaunch(layers []Layer) []string {
	names := []string{}
	for _, l := range layers {
		if slices.Contains(launched, l) {
			names = append(names, string(l))
		}
	}
	return names
}
