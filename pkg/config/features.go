package config

import (
	"go.yaml.in/yaml/v3"
)

// FeaturesAuto stands for the features that a service's settings ask for, as far
// as they may be chosen by something that the service can write.
const FeaturesAuto = "auto"

var profileFeature = form{first: lower, rest: lower + digits + "_", most: 32}

// features checks the word auto, or a list of names.
func (r *configReader) features(key string, n *yaml.Node) {
	const what = "the name of a feature (`pghardend profile show` lists them)"
	if n.Kind != yaml.SequenceNode {
		if s, ok := r.text(key, n, FeaturesAuto); ok && s != FeaturesAuto {
			r.report(key, quote(s)+" is not a list", "write `features: auto`, or a list such as [auto, jit]")
		}
		return
	}
	r.unique(key, n, "jit", func(key string, n *yaml.Node) string {
		s, _ := r.matching(key, n, profileFeature, what, "jit")
		return s
	})
}

// featuresOf turns what viper decoded into a list.
func featuresOf(value any) []string {
	list, ok := value.([]any)
	if !ok {
		return []string{FeaturesAuto}
	}
	names := []string{}
	for _, v := range list {
		if s, ok := v.(string); ok {
			names = append(names, s)
		}
	}
	return names
}
