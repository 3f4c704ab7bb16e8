package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
	"github.com/pghardend/pghardend/pkg/firewall"
)

func TestServicePorts(t *testing.T) {
	spec := firewall.Spec{Role: "postgres", Scope: firewall.ScopeHost, Flows: []firewall.Flow{
		{Name: "postgres", Proto: firewall.ProtoTCP, Ports: []uint16{5432}, From: []string{"pgpool"}, To: []string{"postgres"}, Limited: true},
		{Name: "ssh", Proto: firewall.ProtoTCP, Ports: []uint16{22}, From: []string{"control_plane"}, To: []string{"postgres"}},
		{Name: "heartbeat", Proto: firewall.ProtoUDP, Ports: []uint16{9694}, From: []string{"pgpool"}, To: []string{"postgres"}},
		{Name: "out", Proto: firewall.ProtoTCP, Ports: []uint16{443}, From: []string{"postgres"}, To: []string{"backup"}},
		{Name: "echo", Proto: firewall.ProtoEcho, Rate: 1, From: []string{"pgpool"}, To: []string{"postgres"}},
	}}
	postgres := config.Service{Profile: "postgres", Command: []string{"/pg/postgres", "-p", "5433"}, Landlock: config.Landlock{Bind: []int{6000}}}
	exporter := config.Service{Profile: "exporter", Command: []string{"/x"}}
	open := []firewall.Opening{
		{Proto: "tcp", Port: 7000, From: netip.MustParsePrefix("10.0.0.0/8"), Until: time.Unix(1, 0)},
		{Proto: "udp", Port: 7001, From: netip.MustParsePrefix("10.0.0.0/8"), Until: time.Unix(1, 0)},
	}
	for name, c := range map[string]struct {
		scope string
		open  []firewall.Opening
		svc   config.Service
		want  launch.Ports
	}{
		"flows":          {firewall.ScopeHost, nil, postgres, launch.Ports{TCP: []uint16{5432, 22}, UDP: []uint16{9694}, Own: []uint16{5432}}},
		"another's role": {firewall.ScopeHost, nil, exporter, launch.Ports{TCP: []uint16{5432, 22}, UDP: []uint16{9694}}},
		"openings":       {firewall.ScopeHost, open, exporter, launch.Ports{TCP: []uint16{5432, 22, 7000}, UDP: []uint16{9694, 7001}}},
		"declared, where the host's firewall judges": {firewall.ScopeSiblings, nil, postgres,
			launch.Ports{TCP: []uint16{5432, 22, 6000, 5433}, UDP: []uint16{9694}, Own: []uint16{5432}}},
	} {
		spec.Scope, spec.Openings = c.scope, c.open
		if d := cmp.Diff(c.want, servicePorts(spec, c.svc)); d != "" {
			t.Errorf("%s: (-want +got)\n%s", name, d)
		}
	}
}
