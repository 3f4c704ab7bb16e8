package config

import (
	"net/netip"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Metrics says where metrics are served beside the control socket.
type Metrics struct {
	Listen string // a loopback address and a port from 1024 on; empty: nowhere
}

const metricsExample = "127.0.0.1:9188"

// A port below belongs to the system's own services, which a daemon that starts
// first would keep out.
const minMetricsPort = 1024

func (r *configReader) metrics(key string, n *yaml.Node) {
	r.mapping(key, n, []field{{"listen", false, "listen: " + metricsExample, r.metricsListen}})
}

func (r *configReader) metricsListen(key string, n *yaml.Node) {
	s, ok := r.text(key, n, metricsExample)
	if !ok {
		return
	}
	if problem := listenProblem(s); problem != "" {
		r.report(key, problem, "write a loopback address and a port such as "+metricsExample+" or \"[::1]:9188\"")
	}
}

// listenProblem: no name is resolved, and whoever may read metrics from outside
// has to be let in by an exporter of their own.
func listenProblem(s string) string {
	host, port, ok := cutPort(s)
	addr, err := netip.ParseAddr(host)
	number, portErr := strconv.ParseUint(port, 10, 16)
	switch {
	case !ok || err != nil || addr.Zone() != "":
		return quote(s) + " is not an address and a port"
	case strings.Contains(host, ":") != strings.HasPrefix(s, "["): // 127.0.0.1 in brackets
		return quote(s) + " is not an address and a port"
	case !addr.IsLoopback() || addr.Is4In6():
		return quote(host) + " is not a loopback address"
	case portErr != nil || !decimal(port) || number < minMetricsPort:
		return quote(port) + " is not a port from 1024 to 65535"
	}
	return ""
}

// cutPort splits 127.0.0.1:9188 and [::1]:9188 at the last colon. It stands for
// net.SplitHostPort: this package has no net, so that nothing can be resolved.
func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", "", false
	}
	host, port = s[:i], s[i+1:]
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		return host[1 : len(host)-1], port, true
	}
	return host, port, !strings.ContainsAny(host, "[]:")
}
