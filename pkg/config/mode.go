package config

import (
	"time"

	"go.yaml.in/yaml/v3"
)

// The modes of a service.
const (
	ModeEnforce  = "enforce"
	ModeComplain = "complain" // seccomp and Landlock deny nothing; what they would deny is reported
)

func (r *configReader) mode(key string, n *yaml.Node) {
	r.oneOf(key, n, []string{ModeEnforce, ModeComplain})
}

// complainUntil checks a time with its zone. That it has passed is no mistake: it
// is how complain ends.
func (r *configReader) complainUntil(key string, n *yaml.Node) {
	const example = "2030-01-31T18:00:00Z"
	fix := "write a time with its zone in quotes such as \"" + example + "\""
	if n.Kind != yaml.ScalarNode || refusedFeature(n) || timeOf(n.Value).IsZero() {
		r.report(key, quote(n.Value)+" is not a time (RFC 3339)", fix)
		return
	}
	if n.Tag != "!!str" {
		r.report(key, quote(n.Value)+" is not in quotes", fix)
	}
}

// checkMode looks for a bound of a mode that is not asked for.
func (r *configReader) checkMode(key string, n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		return
	}
	mode, until := "", false
	for i := 0; i+1 < len(n.Content); i += 2 {
		switch n.Content[i].Value {
		case "mode":
			mode = n.Content[i+1].Value
		case "complain_until":
			until = true
		}
	}
	if until && mode != ModeComplain {
		r.report(key+".complain_until", "has no effect without mode: complain", "remove it, or write mode: complain")
	}
}

// timeOf is zero for what is no time.
func timeOf(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}
	}
	return t
}
