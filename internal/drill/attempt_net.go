package drill

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
)

// networkAttempts: A47, A48, A52.
func networkAttempts() []attempt {
	var list []attempt
	try := func(row, name, does, proto string, to netip.Addr, port uint16) {
		list = append(list, attempt{row: row, name: name, does: does, base: asUser, packets: true, fix: "look at `pghardend plan` and at the flows",
			act: words(proto, numbers(to), itoa(int(port)))})
	}
	// Of the ports that lead to a peer, Landlock leaves the address to netfilter.
	ports := func(row, name, does, proto string, to netip.Addr, port uint16) {
		try(row, name, does, proto, to, port)
		list[len(list)-1].single = "Landlock knows ports and no addresses, and this port is a peer's as well"
	}
	for i, family := range []string{"ipv4", "ipv6"} {
		metadata, sibling := Metadata[i].Addr(), Sibling[i].Addr()
		try("A47", "http-"+family, "ask the metadata service over "+family, "tcp", metadata, portHTTP)
		try("A47", "dns-"+family, "send to the metadata service's DNS over "+family, "udp", metadata, portDNS)
		try("A48", "ssh-"+family, "connect to another tenant's ssh over "+family, "tcp", sibling, portSSH)
		ports("A48", "postgres-"+family, "connect to another tenant's postgres over "+family, "tcp", sibling, portPostgres)
		try("A48", "tunnel-"+family, "send datagrams to another tenant as DNS does, over "+family, "udp", sibling, portDNS)
	}
	return append(list,
		attempt{row: "A52", name: "abstract", does: "connect to an abstract socket of root's", fix: "landlock.mode: required, on Linux 6.12 or newer",
			act: words("unix", "@"+abstractName)},
		attempt{row: "A52", name: "root-socket", does: "connect to a socket that is root's alone, as docker.sock is (mode 0600)", fix: "this must not be possible, report it",
			act: func(b *box) []string { return []string{"unix", b.rootSocket()} }},
		attempt{row: "A52", name: "public-socket", does: "connect to a socket of root's that everybody may use, as D-Bus is (mode 0666)",
			act: func(b *box) []string { return []string{"unix", b.publicSocket()} }})
}

// numbers is an address in the form that package act can read.
func numbers(a netip.Addr) string {
	var text []string
	for _, b := range a.AsSlice() {
		text = append(text, itoa(int(b)))
	}
	return strings.Join(text, ".")
}

// abstractName is of the drill's network namespace.
const abstractName = "pghardend-drill-target"

func (b *box) agentSocket() string  { return filepath.Join(b.Inside.Run(), "control.sock") }
func (b *box) rootSocket() string   { return filepath.Join(b.Inside.State(), "root.sock") }
func (b *box) publicSocket() string { return filepath.Join(b.Inside.State(), "public.sock") }

// fileAttempts: A49, A50.
func fileAttempts() []attempt {
	in := func(act, dir, name string) func(*box) []string {
		return func(b *box) []string { return []string{act, filepath.Join(b.Inside.Root, dir, name)} }
	}
	const fix = "landlock.mode: required"
	return []attempt{
		{row: "A49", name: "config", does: "open a configuration of root's for writing", act: in("append", "etc", "pghardend.yaml"), fix: fix},
		{row: "A49", name: "own-config", does: "open a configuration outside of the data directory for writing that belongs to the service's user, as Debian's pg_hba.conf does", base: asUser,
			act: in("append", "etc", "pg_hba.conf"), fix: fix},
		{row: "A49", name: "open-door", does: "let everybody in by pg_hba.conf of the data directory, and connect from another tenant", base: asUser, packets: true,
			sql: openDoor, fix: "look at `pghardend plan` and at the flows", single: "the data directory is the service's to write"},
		{row: "A50", name: "program", does: "open a program of root's for writing", act: in("append", "bin", "program"), fix: fix},
		{row: "A50", name: "replace", does: "move a program of root's away", act: in("replace", "bin", "program"), fix: fix},
		{row: "A50", name: "unit", does: "make a unit in a directory of root's", act: in("create", "etc", "evil.service"), fix: fix},
		{row: "A50", name: "agent-socket", does: "connect to the agent's control socket (a stand-in of the same mode)", fix: "this must not be possible, report it",
			act: func(b *box) []string { return []string{"unix", b.agentSocket()} }},
	}
}

// openDoor changes what the server asks of clients, and comes from outside.
func openDoor(ctx context.Context, b *box) outcome {
	hba := filepath.Join(b.data, "pg_hba.conf")
	_, err := b.cluster.query(ctx, fmt.Sprintf("COPY (SELECT 'local all all trust' UNION ALL SELECT 'host all all all trust') TO '%s';\nSELECT pg_reload_conf();", hba))
	if err != nil {
		return sqlOutcome("write", err)
	}
	if err := b.outside.dial(ctx, reachable()); err != nil {
		return outcome{Step: "connect from outside", Note: "no answer"}
	}
	return reached
}
