package agent

import (
	"slices"

	"github.com/pghardend/pghardend/internal/launch"
)

// noGate is what everybody is told of a service that its own unit has confined.
const noGate = "no exec gate, which needs CAP_SYS_RAWIO at the launch: Landlock and mounts without exec stop executions"

// unprivileged is the spec of a launch that a unit has taken all privileges from: the
// exec gate cannot be had, and what the profile was made of is for the launch to record.
func unprivileged(spec launch.Spec, chosen, wanted []launch.Chosen) (launch.Spec, error) {
	if spec.Seccomp.ExecBelow() > 0 {
		var err error
		if spec, err = withoutGate(spec); err != nil {
			return spec, err
		}
		chosen = append(slices.Clip(chosen), launch.Chosen{Feature: featureOpenExec, Because: "its unit starts it without privileges: " + noGate})
	}
	spec.Features = launch.ProfileRecord{Chosen: chosen, Wanted: wanted}
	return spec, nil
}

// withoutGate leaves out the exec gate, if there is one.
func withoutGate(spec launch.Spec) (launch.Spec, error) {
	if spec.Seccomp.ExecBelow() == 0 {
		return spec, nil
	}
	p, err := addFeatures(spec.Seccomp, []string{featureOpenExec})
	if err != nil {
		return spec, err
	}
	spec.Seccomp = p
	return spec, nil
}

// ofUnit are the features without the one that the unit's launch stands for.
func ofUnit(r launch.ProfileRecord) launch.ProfileRecord {
	if r.Unit {
		r.Chosen = slices.DeleteFunc(slices.Clone(r.Chosen), func(c launch.Chosen) bool { return c.Feature == featureOpenExec })
	}
	return r
}
