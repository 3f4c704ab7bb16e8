package firewall

import "fmt"

// perSource limits each source on its own, so that one peer's flood does not
// use up another's share. The rate is part of the table's name since the kernel
// reuses a table of the same name with its old rate.
func perSource(flow string, rate, burst int) string {
	return fmt.Sprintf("-m hashlimit --hashlimit-upto %d/sec --hashlimit-burst %d --hashlimit-mode srcip --hashlimit-name pgh-%s-%d",
		rate, burst, flow, rate)
}

// serviceLimits bound what one source may use of a service. They stand behind
// the set in the rule that accepts: the kernel counts members only, so that a
// stranger can neither fill its tables nor use up anybody's share, and what is
// over the limit falls through to the drop at the end. First the rate, so that
// no flood gets as far as the list of a source's connections.
//
// Connections that are older than the rule are not among those counted.
func serviceLimits(f Flow, fam Family) string {
	var text string
	if f.NewPerSecond > 0 {
		text += " " + perSource(f.Name, f.NewPerSecond, 2*f.NewPerSecond)
	}
	if f.Connections > 0 {
		bits := 32
		if fam == IPv6 {
			bits = 128
		}
		text += fmt.Sprintf(" -m connlimit --connlimit-upto %d --connlimit-mask %d --connlimit-saddr", f.Connections, bits)
	}
	return text
}
