package launch

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// layerSteps are the steps that put a layer in force. A layer that is left out
// leaves the process as it was started: of all else, root with every capability.
var layerSteps = map[string][]Step{
	layerDAC:          {StepIdentity},
	layerCapabilities: {StepBoundingSet, StepCapabilitySets},
	LayerLimits:       {StepSetLimits},
	LayerCgroup:       {StepEnterCgroup},
	layerSeccomp:      {StepExecGate, StepSeccompLoad},
	LayerLandlock:     {StepLandlockLoad},
	LayerMounts:       {StepMountsEnter},
	LayerSELinux:      {StepSELinuxLabel},
}

// Layers are those that a launch puts in force, sorted.
func Layers() []string { return slices.Sorted(maps.Keys(layerSteps)) }

// ExecOnly is Exec with some of the layers alone, to learn what each one stops by
// itself. It is for drills on scratch data and cannot be asked for by a
// configuration. The kernel takes filters and Landlock rules only with
// no_new_privs, which therefore comes with them too. The checks are those of a
// whole launch; the read-back is left out, since it would miss the other layers.
func ExecOnly(ctx context.Context, spec Spec, on []string, report *os.File) error {
	skip, err := stepsWithout(on)
	if err != nil {
		return &Error{Service: spec.Service, Step: StepSpec, Err: err}
	}
	if skip[StepLandlockLoad] {
		spec.Landlock.Mode = LandlockOff
	}
	if skip[StepEnterCgroup] {
		spec.Cgroup.Mode = CgroupOff
	}
	if skip[StepMountsEnter] {
		spec.Mounts.Mode = MountsOff
	}
	if skip[StepSELinuxLabel] {
		spec.SELinux.Mode = SELinuxOff
	}
	return execWithout(ctx, spec, skip, report)
}

// stepsWithout are the steps that belong to none of the layers. With all layers
// there are none.
func stepsWithout(on []string) (map[Step]bool, error) {
	for _, name := range on {
		if _, ok := layerSteps[name]; !ok {
			return nil, fmt.Errorf("unknown layer %q: use %s", name, strings.Join(Layers(), ", "))
		}
	}
	skip := map[Step]bool{}
	for name, list := range layerSteps {
		for _, s := range list {
			skip[s] = !slices.Contains(on, name)
		}
	}
	skip[StepNoNewPrivs] = skip[StepBoundingSet] && skip[StepSeccompLoad] && skip[StepLandlockLoad]
	skip[StepReadBack] = skip[StepIdentity] || skip[StepBoundingSet]
	return skip, nil
}
