package config

import (
	"strings"
	"testing"
)

// Metrics are served to this host alone: they say who talks to whom.
func TestMetricsListen(t *testing.T) {
	tests := []struct {
		listen, problem string
	}{
		{"127.0.0.1:9188", ""},
		{"127.200.0.1:65535", ""},
		{"[::1]:1024", ""},
		{"0.0.0.0:9188", "is not a loopback address"},
		{"10.0.0.1:9188", "is not a loopback address"},
		{"[::]:9188", "is not a loopback address"},
		{"[::ffff:127.0.0.1]:9188", "is not a loopback address"},
		{"[fe80::1]:9188", "is not a loopback address"},
		{"[::1%lo]:9188", "is not an address and a port"},
		{"::1:9188", "is not an address and a port"},
		{"[127.0.0.1]:9188", "is not an address and a port"},
		{"localhost:9188", "is not an address and a port"},
		{":9188", "is not an address and a port"},
		{"", "is not an address and a port"},
		{"9188", "is not an address and a port"},
		{"127.0.0.1", "is not an address and a port"},
		{"127.1:9188", "is not an address and a port"},
		{"127.0.0.1:1023", "is not a port from 1024 to 65535"},
		{"127.0.0.1:65536", "is not a port from 1024 to 65535"},
		{"127.0.0.1:", "is not a port from 1024 to 65535"},
		{"127.0.0.1:+9188", "is not a port from 1024 to 65535"},
		{"127.0.0.1:09188", "is not a port from 1024 to 65535"},
		{"127.0.0.1:http", "is not a port from 1024 to 65535"},
	}
	for _, tt := range tests {
		t.Run(tt.listen, func(t *testing.T) {
			c, err := ParseConfig("/etc/p/c.yaml", []byte("version: 1\nnode: pg-0\nmetrics:\n  listen: "+quote(tt.listen)+"\n"), "")
			switch {
			case tt.problem == "" && (err != nil || c.Metrics.Listen != tt.listen):
				t.Errorf("%+v, %v", c.Metrics, err)
			case tt.problem != "" && (err == nil || !strings.HasPrefix(err.Error(), "/etc/p/c.yaml:4: metrics.listen: ") || !strings.Contains(err.Error(), tt.problem)):
				t.Errorf("got %v, want %q", err, tt.problem)
			}
		})
	}
}
