package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
)

const mtListen = "127.0.0.1:9188"

// mtBed is a node with a daemon and without services, and a sibling tenant.
type mtBed struct {
	t             *testing.T
	node, sibling *testbed.Host
	agent         *testbed.Agent
	backend       string
}

func mtNew(t *testing.T, backend string) *mtBed {
	t.Helper()
	bed, err := testbed.New(t.Context(), bedName("metrics"), []testbed.HostSpec{
		{Name: "pg-0", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64"}},
		{Name: "sibling", Addresses: []string{"10.20.1.66/24", "fd00:20:1::66/64"}},
	})
	must(t, err)
	t.Cleanup(func() { must(t, bed.Close()) })
	b := &mtBed{t: t, node: bed.Host("pg-0"), sibling: bed.Host("sibling"), backend: backend}
	b.agent, err = testbed.NewAgent(t.Context(), b.node, testbed.AgentConfig{
		Backend: backend,
		Peers: testbed.Peers{
			Instance: "orders-prod",
			Nodes:    []testbed.Peer{testbed.PeerOf(b.node, "postgres"), {Name: "pool-0", Role: "pgpool", Addresses: []string{"10.20.1.20"}}},
			Networks: map[string][]string{"control_plane": {"10.0.0.0/24"}},
		},
	})
	must(t, err)
	text, err := os.ReadFile(b.agent.ConfigPath)
	must(t, err)
	must(t, testbed.WriteFile(b.agent.ConfigPath, string(text)+"metrics: {listen: \""+mtListen+"\"}\n"))
	must(t, b.agent.Start())
	return b
}

// scrape reads the page at the end of a connection that dial makes in the node.
func (b *mtBed) scrape(ctx context.Context, network, address string) (string, error) {
	var conn net.Conn
	if err := b.node.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	}); err != nil {
		return "", err
	}
	defer conn.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://pghardend/metrics", nil)
	if err != nil {
		return "", err
	}
	if err := errors.Join(conn.SetDeadline(time.Now().Add(10*time.Second)), req.Write(conn)); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	return string(text), err
}

func (b *mtBed) socket() string { return filepath.Join(b.agent.Dir, "run", "control.sock") }

// await scrapes until a sample is at least so much.
func (b *mtBed) await(sample string, least float64) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	must(b.t, b.agent.Await(ctx, fmt.Sprintf("%s of %g", sample, least), func(ctx context.Context) error {
		text, err := b.scrape(ctx, "unix", b.socket())
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			if value, ok := strings.CutPrefix(line, sample+" "); ok {
				n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err == nil && n < least {
					err = errors.New(line)
				}
				return err
			}
		}
		return errors.New("there is no such sample in\n" + text)
	}))
}

// The daemon's page says what it did, what the kernel counted and what holds, on
// the socket and on the port, and the port is for the node alone.
func TestMetricsOfTheDaemon(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		b := mtNew(t, backend)
		b.await(`pghardend_layer_enforced{layer="netfilter",subject="node"}`, 1)
		b.await(`pghardend_set_members{set="pgh4-control_plane"}`, 1)
		b.await(`pghardend_last_clean_timestamp_seconds`, float64(time.Now().Add(-time.Minute).Unix()))
		b.await(`pghardend_build_info{version="`+mtVersion(t, b)+`",backend="`+backend+`"}`, 1)

		run(t, b.node, "iptables-"+backend+" -F PGHARDEND-IN")
		b.await(`pghardend_drifts_total{resource="firewall",cause="drift"}`, 1)
		b.await(`pghardend_repair_seconds_count{resource="firewall"}`, 1)

		for _, at := range families(b.node) {
			send(t, b.sibling, testbed.TCPProbe(netip.AddrPortFrom(at, 5432), testbed.SYN))
		}
		for _, family := range []string{"ipv4", "ipv6"} {
			b.await(`pghardend_packets_total{family="`+family+`",direction="in",flow="drop",verdict="drop"}`, 1)
		}

		text, err := b.scrape(t.Context(), "tcp", mtListen)
		must(t, err)
		if !strings.Contains(text, "pghardend_degraded ") || strings.Contains(text, "10.20.1.") {
			t.Errorf("on the port:\n%s", text)
		}
		for _, at := range families(b.node) {
			address := netip.AddrPortFrom(at, 9188).String()
			if text, err := b.scrape(t.Context(), "tcp", address); err == nil {
				t.Errorf("the page is served on %s:\n%s", address, text)
			}
		}
	})
}

func mtVersion(t *testing.T, b *mtBed) string {
	t.Helper()
	var st struct{ Version string }
	_, err := b.agent.JSON(t.Context(), &st, "status")
	must(t, err)
	return st.Version
}
