package e2e

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/pghardend/pghardend/internal/testbed"
)

// Without UDP the server asks for names by TCP; told to ask by UDP it gets no answer.
// No denial is an event either way: sorting addresses by UDP is the C library's habit.
func TestNamesAreAskedForByTCP(t *testing.T) {
	for name, c := range map[string]struct {
		environment []string
		want        string
	}{
		"by TCP": {nil, "(127.0.0.9), port 5432 failed"}, "by UDP": {[]string{"RES_OPTIONS=timeout:1 attempts:1"}, "could not translate host name"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSlice(t, "nft", map[string]string{"listen_addresses": "localhost"})
			l, err := s.node.Listen(s.ctx, netip.MustParseAddrPort("127.0.0.1:53"))
			must(t, err)
			t.Cleanup(func() { l.Close() })
			go serveNames(l)
			conf := filepath.Join(launchDir(t), "resolv.conf")
			launchWrite(t, conf, []byte("nameserver 127.0.0.1\n"), 0o644)
			run(t, s.node, "mount --bind "+conf+" /etc/resolv.conf")
			s.configure(func(svc *testbed.Service) { svc.Environment = append(svc.Environment, c.environment...) })
			s.start()
			_, err = s.cluster.PsqlSocket(s.ctx, s.node, "CREATE SUBSCRIPTION x CONNECTION 'host=db.example.test dbname=x connect_timeout=5' PUBLICATION x")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if out := run(t, s.node, "ss -Htln sport = :5432"); !strings.Contains(out, "127.0.0.1:") {
				t.Errorf("localhost is not listened on: %s", out)
			}
			for _, e := range s.allEvents() {
				if e.Kind == "denied" {
					t.Errorf("%+v", e)
				}
			}
		})
	}
}

// serveNames answers each question for an address with 127.0.0.9.
func serveNames(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			for {
				var size [2]byte
				if _, err := io.ReadFull(conn, size[:]); err != nil {
					return
				}
				ask := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(conn, ask); err != nil {
					return
				}
				answer, err := answerName(ask)
				if err != nil {
					return
				}
				if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
					return
				}
			}
		}()
	}
}

func answerName(ask []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(ask); err != nil {
		return nil, err
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 9}},
		}}
	}
	return m.Pack()
}
