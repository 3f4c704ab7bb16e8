package metrics

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// contentType is that of the text format.
const contentType = "text/plain; version=0.0.4; charset=utf-8"

// page is the text in the making.
type page struct{ bytes.Buffer }

// family begins a family of samples.
func (p *page) family(name, kind, help string) {
	p.WriteString("# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n")
}

// sample writes one line. pairs are label names and values.
func (p *page) sample(name string, value float64, pairs ...string) {
	p.WriteString(name)
	for i := 0; i+1 < len(pairs); i += 2 {
		p.WriteString(separator(i) + pairs[i] + `="` + escape(pairs[i+1]) + `"`)
	}
	if len(pairs) > 1 {
		p.WriteByte('}')
	}
	p.WriteString(" " + strconv.FormatFloat(value, 'g', -1, 64) + "\n")
}

func separator(i int) string {
	if i == 0 {
		return "{"
	}
	return ","
}

var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func escape(value string) string {
	return escaper.Replace(strings.ToValidUTF8(value, "?"))
}

// single is a family of one sample without labels.
func (p *page) single(name, kind, help string, value float64) {
	p.family(name, kind, help)
	p.sample(name, value)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// seconds is 0 for a time that never was.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// page asks the source and writes everything.
func (m *Metrics) page(ctx context.Context) []byte {
	r := m.ask(ctx)
	var p page
	p.family("pghardend_build_info", "gauge", "The daemon's version and the backend of iptables in use.")
	p.sample("pghardend_build_info", 1, "version", m.version, "backend", m.backend)
	p.state(r.state)
	p.packets(r.packets)
	m.mu.Lock()
	defer m.mu.Unlock()
	p.counts("pghardend_drifts_total", "Times that a resource was not as desired.", m.drifts, "resource", "cause")
	p.repairs(m.repairs)
	p.counts("pghardend_denied_syscalls_total", "Syscalls that a seccomp filter denied and the kernel recorded.", m.denied, "service", "syscall")
	p.counts("pghardend_denied_execs_total", "Programs that a service tried to execute and may not.", m.execs, "service")
	p.counts("pghardend_denied_selinux_total", "Accesses that SELinux denied a service, by class of what it wanted.", m.selinux, "service", "class")
	p.single("pghardend_events_lost_total", "counter", "Times that notifications of changes were lost; all is read anew then.", float64(m.lost))
	p.single("pghardend_scrape_errors_total", "counter", "Times that not all packet counters could be read.", float64(m.failed))
	return p.Bytes()
}

func (p *page) state(s State) {
	p.single("pghardend_degraded", "gauge", "1 if not everything is as desired; `pghardend status` says why.", truth(s.Degraded))
	p.single("pghardend_conflicts", "gauge", "Resources that somebody else changes again and again.", float64(s.Conflicts))
	p.single("pghardend_last_reconcile_timestamp_seconds", "gauge", "End of the last full comparison with the kernel.", seconds(s.LastReconcile))
	p.single("pghardend_last_clean_timestamp_seconds", "gauge", "End of the last pass that left everything as desired.", seconds(s.LastClean))
	p.family("pghardend_layer_enforced", "gauge", "1 if the kernel was seen to enforce the layer on the subject, which is a service or the node.")
	for _, l := range s.Layers[:min(len(s.Layers), maxLayers)] {
		p.sample("pghardend_layer_enforced", truth(l.Enforced), "layer", l.Name, "subject", l.Subject)
	}
	p.family("pghardend_set_members", "gauge", "Members of a set.")
	names := slices.Sorted(maps.Keys(s.Sets))
	for _, name := range names[:min(len(names), maxSets)] {
		p.sample("pghardend_set_members", float64(s.Sets[name]), "set", name)
	}
}

// packets start again from 0 whenever a chain is written, which Prometheus knows
// how to handle.
func (p *page) packets(all []Packets) {
	packets, octets := newFamily(maxPackets), newFamily(maxPackets)
	for _, c := range all {
		packets.add(c.Packets, c.Family, c.Direction, c.Flow, c.Verdict)
		octets.add(c.Bytes, c.Family, c.Direction, c.Flow, c.Verdict)
	}
	names := []string{"family", "direction", "flow", "verdict"}
	p.counts("pghardend_packets_total", "Packets that a flow or reason decided about.", packets, names...)
	p.counts("pghardend_bytes_total", "Bytes of the packets that a flow or reason decided about.", octets, names...)
}

func (p *page) counts(name, help string, f family, names ...string) {
	p.family(name, "counter", help)
	for _, l := range f.sorted() {
		var pairs []string
		for i, label := range names {
			pairs = append(pairs, label, l[i])
		}
		p.sample(name, float64(f.counts[l]), pairs...)
	}
}

func (p *page) repairs(all map[string]*histogram) {
	const name = "pghardend_repair_seconds"
	p.family(name, "histogram", "How long a drift was open at most, until it was seen to be repaired.")
	for _, resource := range slices.Sorted(maps.Keys(all)) {
		h := all[resource]
		for i, bound := range buckets {
			p.sample(name+"_bucket", float64(h.counts[i]), "resource", resource, "le", strconv.FormatFloat(bound, 'g', -1, 64))
		}
		p.sample(name+"_bucket", float64(h.count), "resource", resource, "le", "+Inf")
		p.sample(name+"_sum", h.sum, "resource", resource)
		p.sample(name+"_count", float64(h.count), "resource", resource)
	}
}
