package config

import "testing"

const (
	head    = "version: 1\ninstance: orders-prod\n"
	oneNode = "nodes:\n  - {name: pg-0, role: postgres, addresses: [10.20.1.10]}\n"
)

func withAddress(a string) string {
	return head + "nodes:\n  - name: pg-0\n    role: postgres\n    addresses:\n      - " + a + "\n"
}

func withCIDR(c string) string {
	return head + oneNode + "networks:\n  applications:\n    - " + c + "\n"
}

// refusal is a text and the whole error it must give.
type refusal struct{ name, text, want string }

func refusesPeers(t *testing.T, tests []refusal) {
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := ParsePeers("peers.yaml", []byte(tt.text))
			checkRefusal(t, err, tt.want)
			if p.Nodes != nil || p.Networks != nil {
				t.Errorf("a refused list must not be returned: %+v", p)
			}
		})
	}
}

func checkRefusal(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted, want the error\n%s", want)
	}
	if got := err.Error(); got != want {
		t.Errorf("the error is\n%s\nwant\n%s", got, want)
	}
}

// The file as a whole, its keys and the instance.
func TestPeersFileRefused(t *testing.T) {
	tests := []refusal{
		{"empty file", "",
			"peers.yaml:1: the file is empty; begin it with `version: 1`"},
		{"only comments", "# nothing\n",
			"peers.yaml:1: the file is empty; begin it with `version: 1`"},
		{"null document", "---\n",
			"peers.yaml:1: the file is empty; begin it with `version: 1`"},
		{"not a mapping", "- a\n- b\n",
			"peers.yaml:1: the file is a list, not a mapping; begin it with `version: 1`"},
		{"a scalar", "peers\n",
			"peers.yaml:1: the file is text (\"peers\"), not a mapping; begin it with `version: 1`"},
		{"several documents", "version: 1\ninstance: a\nnodes: []\n---\nversion: 1\n",
			"peers.yaml:4: a second YAML document begins here; keep one document in the file and no `---` after its first line"},
		{"an empty second document", "version: 1\n---\n",
			"peers.yaml:2: a second YAML document begins here; keep one document in the file and no `---` after its first line"},
		{"broken second document", "version: 1\n---\na: [\n",
			"peers.yaml:3: not valid YAML: did not find expected node content; check indentation, colons, brackets and quotes on this line and the one before"},
		{"syntax: indentation", "version: 1\ninstance: a\nnodes:\n  - name: a\n    role: pgpool\n   addresses: [10.0.0.1]\n",
			"peers.yaml:6: not valid YAML: did not find expected '-' indicator; check indentation, colons, brackets and quotes on this line and the one before"},
		{"syntax: open bracket", "version: 1\nnodes: [a, b\ninstance: a\n",
			"peers.yaml:2: not valid YAML: did not find expected ',' or ']'; check indentation, colons, brackets and quotes on this line and the one before"},
		{"syntax: open quote", "version: 1\ninstance: \"abc\nnodes: []\n",
			"peers.yaml:2: not valid YAML: found unexpected end of stream; check indentation, colons, brackets and quotes on this line and the one before"},
		{"syntax: tab", "version: 1\nnodes:\n\t- a\n",
			"peers.yaml:3: not valid YAML: found character that cannot start any token; check indentation, colons, brackets and quotes on this line and the one before"},
		{"syntax: two colons", "version: 1\ninstance: a: b\n",
			"peers.yaml:2: not valid YAML: mapping values are not allowed in this context; check indentation, colons, brackets and quotes on this line and the one before"},
		{"syntax: unknown alias", "version: 1\ninstance: *abc\n",
			"peers.yaml:2: not valid YAML: unknown anchor 'abc' referenced; write the value out, or quote it if the * is part of it"},
		{"half-written", "version: 1\ninstance: orders-pr",
			"peers.yaml:2: the last line has no end, the file looks half-written; end it with a newline if it is complete, and replace files by rename"},
		{"not UTF-8", "version: 1\ninstance: \"\xff\"\n",
			"peers.yaml:2: the byte 0xff is not UTF-8 text; remove it; the file must be plain UTF-8 text"},
		{"NUL byte", "version: 1\ninstance: a\x00b\n",
			"peers.yaml:2: a control character (U+0000); remove it; the file must be plain UTF-8 text"},
		{"lone carriage return", "version: 1\r# instance: a\ninstance: b\n",
			"peers.yaml:1: a control character (U+000D); remove it; the file must be plain UTF-8 text"},
		{"line separator", "version: 1\ninstance: a\u2028b\n",
			"peers.yaml:2: a control character (U+2028); remove it; the file must be plain UTF-8 text"},
		{"anchor, alias, merge, tag", "version: 1\ninstance: &i orders\nnodes:\n  - &n {name: *i, role: postgres, addresses: [10.0.0.1]}\n  - {<<: *n, name: b}\nnetworks: !!map {}\n",
			"peers.yaml:2: YAML anchors (&i) are not supported here; write the value out in full\n" +
				"peers.yaml:4: YAML anchors (&n) are not supported here; write the value out in full\n" +
				"peers.yaml:4: YAML aliases (*i) are not supported here; write the value out in full\n" +
				"peers.yaml:5: YAML merge keys (<<) are not supported here; write the value out in full\n" +
				"peers.yaml:5: YAML aliases (*n) are not supported here; write the value out in full\n" +
				"peers.yaml:5: nodes[1].role: missing; add `role: postgres`\n" +
				"peers.yaml:5: nodes[1].addresses: missing; add `addresses: [10.20.1.10]`\n" +
				"peers.yaml:6: YAML tags (\"!!map\") are not supported here; write the value out in full"},
		{"missing keys", "# a list\nnetworks: {}\n",
			"peers.yaml:1: version: missing; add `version: 1`\n" +
				"peers.yaml:1: instance: missing; add `instance: orders-prod`\n" +
				"peers.yaml:1: nodes: missing; add `nodes: [{name: pg-0, role: postgres, addresses: [10.20.1.10]}]`"},
		{"missing version", "instance: orders-prod\n" + oneNode,
			"peers.yaml:1: version: missing; add `version: 1`"},
		{"wrong version", "version: 2\ninstance: orders-prod\n" + oneNode,
			"peers.yaml:1: version: version 2 is not supported; write `version: 1`, the only version that this program reads"},
		{"version as text", "version: \"1\"\ninstance: orders-prod\n" + oneNode,
			"peers.yaml:1: version: is text (\"1\"), not a number; write `version: 1`, the only version that this program reads"},
		{"version as fraction", "version: 1.0\ninstance: orders-prod\n" + oneNode,
			"peers.yaml:1: version: 1.0 is not a whole number; write `version: 1`, the only version that this program reads"},
		{"version as hex", "version: 0x1\ninstance: orders-prod\n" + oneNode,
			"peers.yaml:1: version: 0x1 is not a decimal number; write `version: 1`, the only version that this program reads"},
		{"unknown key", head + "network: {}\nnodes:\n  - {name: pg-0, role: postgres, addresses: [10.20.1.10]}\n",
			"peers.yaml:3: network: unknown key; did you mean networks?"},
		{"unknown key, nothing near", head + "colour: red\nnodes:\n  - {name: pg-0, role: postgres, addresses: [10.20.1.10]}\n",
			"peers.yaml:3: colour: unknown key; known keys here: version, instance, nodes, networks"},
		{"unknown key, case", "Version: 1\ninstance: orders-prod\n" + oneNode,
			"peers.yaml:1: Version: unknown key; did you mean version?"},
		{"unknown key of a node", head + "nodes:\n  - {name: pg-0, role: postgres, adresses: [10.20.1.10]}\n",
			"peers.yaml:4: nodes[0].adresses: unknown key; did you mean addresses?"},
		{"duplicate key", head + "instance: orders-test\nnodes:\n  - {name: pg-0, role: postgres, addresses: [10.20.1.10]}\n",
			"peers.yaml:3: instance: the key is here twice, first on line 2; remove one of the two"},
		{"duplicate network", head + oneNode + "networks:\n  dns: []\n  dns: [10.0.0.53/32]\n",
			"peers.yaml:7: networks.dns: the key is here twice, first on line 6; remove one of the two"},
		{"key is a number", head + oneNode + "networks:\n  1: []\n",
			"peers.yaml:6: networks.1: the key is a number (1), not text; write a name, in quotes if it must look like this"},
		{"key is a list", head + oneNode + "networks:\n  ? [a]\n  : []\n",
			"peers.yaml:6: networks.\"?\": the key is a list, not text; write a name, in quotes if it must look like this"},
		{"key without value", "version: 1\ninstance:\n" + oneNode,
			"peers.yaml:2: instance: has no value; write text such as `orders-prod`"},
		{"instance: number", "version: 1\ninstance: 42\n" + oneNode,
			"peers.yaml:2: instance: is a number (42), not text; write text such as `orders-prod`, or put it in quotes: \"42\""},
		{"instance: date", "version: 1\ninstance: 2026-01-01\n" + oneNode,
			"peers.yaml:2: instance: is a date (2026-01-01), not text; write text such as `orders-prod`, or put it in quotes: \"2026-01-01\""},
		{"instance: empty", "version: 1\ninstance: \"\"\n" + oneNode,
			"peers.yaml:2: instance: \"\" is not an instance id (at most 63 letters, digits, dots, - and _, a letter or digit at either end); write something like orders-prod"},
		{"instance: space", "version: 1\ninstance: orders prod\n" + oneNode,
			"peers.yaml:2: instance: \"orders prod\" is not an instance id (at most 63 letters, digits, dots, - and _, a letter or digit at either end); write something like orders-prod"},
		{"instance: too long", "version: 1\ninstance: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n" + oneNode,
			"peers.yaml:2: instance: \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…\" is not an instance id (at most 63 letters, digits, dots, - and _, a letter or digit at either end); write something like orders-prod"},
		{"instance: newline", "version: 1\ninstance: \"orders\\nprod\"\n" + oneNode,
			"peers.yaml:2: instance: \"orders\\nprod\" contains a control character (U+000A); remove it: NUL, newlines and the like are not allowed"},
		{"instance: NUL", "version: 1\ninstance: \"orders\\0\"\n" + oneNode,
			"peers.yaml:2: instance: \"orders\\x00\" contains a control character (U+0000); remove it: NUL, newlines and the like are not allowed"},
		{"instance: list", "version: 1\ninstance: [a]\n" + oneNode,
			"peers.yaml:2: instance: is a list, not text; write text such as `orders-prod`"},
	}
	refusesPeers(t, tests)
}

// Names, roles and addresses of nodes.
func TestPeersNodesRefused(t *testing.T) {
	tests := []refusal{
		{"nodes: missing", head,
			"peers.yaml:1: nodes: missing; add `nodes: [{name: pg-0, role: postgres, addresses: [10.20.1.10]}]`"},
		{"nodes: empty list", head + "nodes: []\n",
			"peers.yaml:3: nodes: the list is empty; list all nodes of the instance, this one included"},
		{"nodes: nothing", head + "nodes:\n",
			"peers.yaml:3: nodes: has no value; write a list such as `[{name: pg-0, role: postgres, addresses: [10.20.1.10]}]`"},
		{"nodes: mapping", head + "nodes: {pg-0: {}}\n",
			"peers.yaml:3: nodes: is a mapping, not a list; write a list such as `[{name: pg-0, role: postgres, addresses: [10.20.1.10]}]`"},
		{"nodes: text", head + "nodes: pg-0\n",
			"peers.yaml:3: nodes: is text (\"pg-0\"), not a list; write a list such as `[{name: pg-0, role: postgres, addresses: [10.20.1.10]}]`"},
		{"node: text", head + "nodes: [pg-0]\n",
			"peers.yaml:3: nodes[0]: is text (\"pg-0\"), not a mapping; write a mapping such as `name: pg-0`"},
		{"node: nothing", head + "nodes:\n  -\n  - {name: pg-0, role: postgres, addresses: [10.20.1.10]}\n",
			"peers.yaml:4: nodes[0]: has no value; write a mapping such as `name: pg-0`"},
		{"node: empty", head + "nodes:\n  - {}\n",
			"peers.yaml:4: nodes[0].name: missing; add `name: pg-0`\n" +
				"peers.yaml:4: nodes[0].role: missing; add `role: postgres`\n" +
				"peers.yaml:4: nodes[0].addresses: missing; add `addresses: [10.20.1.10]`"},
		{"node: no addresses", head + "nodes:\n  - {name: pg-0, role: postgres}\n",
			"peers.yaml:4: nodes[0].addresses: missing; add `addresses: [10.20.1.10]`"},
		{"node: empty addresses", head + "nodes:\n  - {name: pg-0, role: postgres, addresses: []}\n",
			"peers.yaml:4: nodes[0].addresses: the node has no address; write `addresses: [10.20.1.10]`"},
		{"node: one address without list", head + "nodes:\n  - {name: pg-0, role: postgres, addresses: 10.20.1.10}\n",
			"peers.yaml:4: nodes[0].addresses: is text (\"10.20.1.10\"), not a list; write a list such as `[10.20.1.10]`"},
		{"name: upper case", head + "nodes:\n  - {name: PG-0, role: postgres, addresses: [10.20.1.10]}\n",
			"peers.yaml:4: nodes[0].name: \"PG-0\" is not a node name (an RFC 1123 label: at most 63 of a-z, 0-9 and -, no - at either end); write something like pg-0"},
		{"name: dots", head + "nodes:\n  - {name: pg-0.example, role: postgres, addresses: [10.20.1.10]}\n",
			"peers.yaml:4: nodes[0].name: \"pg-0.example\" is not a node name (an RFC 1123 label: at most 63 of a-z, 0-9 and -, no - at either end); write something like pg-0"},
		{"name: dash at the end", head + "nodes:\n  - {name: pg-, role: postgres, addresses: [10.20.1.10]}\n",
			"peers.yaml:4: nodes[0].name: \"pg-\" is not a node name (an RFC 1123 label: at most 63 of a-z, 0-9 and -, no - at either end); write something like pg-0"},
		{"name: too long", head + "nodes:\n  - {name: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, role: postgres, addresses: [10.20.1.10]}\n",
			"peers.yaml:4: nodes[0].name: \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\" is not a node name (an RFC 1123 label: at most 63 of a-z, 0-9 and -, no - at either end); write something like pg-0"},
		{"name: number", head + "nodes:\n  - {name: 0, role: postgres, addresses: [10.20.1.10]}\n",
			"peers.yaml:4: nodes[0].name: is a number (0), not text; write text such as `pg-0`, or put it in quotes: \"0\""},
		{"name: duplicate", head + oneNode + "  - {name: pg-0, role: postgres, addresses: [10.20.1.11]}\n",
			"peers.yaml:5: nodes[1].name: node pg-0 is here twice, first on line 4; give every node its own name"},
		{"role: unknown", head + "nodes:\n  - {name: pg-0, role: primary, addresses: [10.20.1.10]}\n",
			"peers.yaml:4: nodes[0].role: \"primary\" is unknown; known values: postgres, pgpool"},
		{"role: misspelt", head + "nodes:\n  - {name: pg-0, role: Postgresql, addresses: [10.20.1.10]}\n",
			"peers.yaml:4: nodes[0].role: \"Postgresql\" is unknown; did you mean postgres?"},
		{"role: boolean", head + "nodes:\n  - {name: pg-0, role: true, addresses: [10.20.1.10]}\n",
			"peers.yaml:4: nodes[0].role: is a boolean (true), not text; write text such as `postgres`, or put it in quotes: \"true\""},
		{"address: text", withAddress("pg-0.example.com"),
			"peers.yaml:7: nodes[0].addresses[0]: \"pg-0.example.com\" is not an IP address; write an address such as 10.20.1.10 or fd00:20:1::10; names are not resolved"},
		{"address: octet", withAddress("10.20.1.300"),
			"peers.yaml:7: nodes[0].addresses[0]: \"10.20.1.300\" is not an IP address; write an address such as 10.20.1.10 or fd00:20:1::10; names are not resolved"},
		{"address: leading zero", withAddress("010.20.1.10"),
			"peers.yaml:7: nodes[0].addresses[0]: \"010.20.1.10\" is not an IP address; write an address such as 10.20.1.10 or fd00:20:1::10; names are not resolved"},
		{"address: float", withAddress("10.20"),
			"peers.yaml:7: nodes[0].addresses[0]: is a number (10.20), not text; write text such as `10.20.1.10`, or put it in quotes: \"10.20\""},
		{"address: empty", withAddress("\"\""),
			"peers.yaml:7: nodes[0].addresses[0]: \"\" is not an IP address; write an address such as 10.20.1.10 or fd00:20:1::10; names are not resolved"},
		{"address: with length", withAddress("10.20.1.10/24"),
			"peers.yaml:7: nodes[0].addresses[0]: \"10.20.1.10/24\" has a prefix length, a node has single addresses; write 10.20.1.10 if it is the node's"},
		{"address: with /0", withAddress("10.20.1.10/0"),
			"peers.yaml:7: nodes[0].addresses[0]: \"10.20.1.10/0\" has a prefix length, a node has single addresses; write 10.20.1.10 if it is the node's"},
		{"address: zone", withAddress("\"fe80::1%eth0\""),
			"peers.yaml:7: nodes[0].addresses[0]: \"fe80::1%eth0\" has a zone (what follows the %); write an address that means the same on every node, without a zone"},
		{"address: mapped", withAddress("\"::ffff:10.20.1.10\""),
			"peers.yaml:7: nodes[0].addresses[0]: \"::ffff:10.20.1.10\" is an IPv4 address mapped into IPv6; write 10.20.1.10"},
		{"address: mapped in hex", withAddress("\"::ffff:a14:10a\""),
			"peers.yaml:7: nodes[0].addresses[0]: \"::ffff:a14:10a\" is an IPv4 address mapped into IPv6; write 10.20.1.10"},
		{"address: unspecified", withAddress("0.0.0.0"),
			"peers.yaml:7: nodes[0].addresses[0]: \"0.0.0.0\" is the unspecified address and cannot be a node's; write an address such as 10.20.1.10 or fd00:20:1::10"},
		{"address: unspecified v6", withAddress("\"::\""),
			"peers.yaml:7: nodes[0].addresses[0]: \"::\" is the unspecified address and cannot be a node's; write an address such as 10.20.1.10 or fd00:20:1::10"},
		{"address: this network", withAddress("0.1.2.3"),
			"peers.yaml:7: nodes[0].addresses[0]: \"0.1.2.3\" is an address of \"this network\" (0.0.0.0/8) and cannot be a node's; write an address such as 10.20.1.10 or fd00:20:1::10"},
		{"address: loopback", withAddress("127.0.0.1"),
			"peers.yaml:7: nodes[0].addresses[0]: \"127.0.0.1\" is a loopback address and cannot be a node's; write an address such as 10.20.1.10 or fd00:20:1::10"},
		{"address: loopback v6", withAddress("\"::1\""),
			"peers.yaml:7: nodes[0].addresses[0]: \"::1\" is a loopback address and cannot be a node's; write an address such as 10.20.1.10 or fd00:20:1::10"},
		{"address: multicast", withAddress("224.0.0.18"),
			"peers.yaml:7: nodes[0].addresses[0]: \"224.0.0.18\" is a multicast address and cannot be a node's; write an address such as 10.20.1.10 or fd00:20:1::10"},
		{"address: multicast v6", withAddress("\"ff02::1\""),
			"peers.yaml:7: nodes[0].addresses[0]: \"ff02::1\" is a multicast address and cannot be a node's; write an address such as 10.20.1.10 or fd00:20:1::10"},
		{"address: broadcast", withAddress("255.255.255.255"),
			"peers.yaml:7: nodes[0].addresses[0]: \"255.255.255.255\" is the broadcast address and cannot be a node's; write an address such as 10.20.1.10 or fd00:20:1::10"},
		{"address: compatible", withAddress("\"::10.0.0.1\""),
			"peers.yaml:7: nodes[0].addresses[0]: \"::10.0.0.1\" is an IPv4-compatible IPv6 address (::/96) and cannot be a node's; write an address such as 10.20.1.10 or fd00:20:1::10"},
		{"address: link-local", withAddress("169.254.169.254"),
			"peers.yaml:7: nodes[0].addresses[0]: \"169.254.169.254\" is a link-local address, another host on another link may have it too; write an address such as 10.20.1.10 or fd00:20:1::10"},
		{"address: link-local v6", withAddress("\"fe80::1\""),
			"peers.yaml:7: nodes[0].addresses[0]: \"fe80::1\" is a link-local address, another host on another link may have it too; write an address such as 10.20.1.10 or fd00:20:1::10"},
		{"address: nothing", withAddress(""),
			"peers.yaml:7: nodes[0].addresses[0]: has no value; write text such as `10.20.1.10`"},
		{"address: duplicate in a node", head + "nodes:\n  - {name: pg-0, role: postgres, addresses: [\"fd00::1\", \"fd00:0:0::1\"]}\n",
			"peers.yaml:4: nodes[0].addresses[1]: address fd00::1 is here twice, first as nodes[0].addresses[0] on line 4; remove it where it is wrong"},
		{"address: duplicate across nodes", head + oneNode + "  - {name: pg-1, role: postgres, addresses: [10.20.1.10]}\n",
			"peers.yaml:5: nodes[1].addresses[0]: address 10.20.1.10 is here twice, first as nodes[0].addresses[0] on line 4; remove it where it is wrong"},
	}
	refusesPeers(t, tests)
}

// Names and entries of networks.
func TestPeersNetworksRefused(t *testing.T) {
	tests := []refusal{
		{"networks: list", head + oneNode + "networks: []\n",
			"peers.yaml:5: networks: is a list, not a mapping; write a mapping such as `control_plane: [10.0.0.0/24]`"},
		{"networks: nothing", head + oneNode + "networks:\n",
			"peers.yaml:5: networks: has no value; write a mapping such as `control_plane: [10.0.0.0/24]`"},
		{"network: text", head + oneNode + "networks:\n  dns: 10.0.0.53/32\n",
			"peers.yaml:6: networks.dns: is text (\"10.0.0.53/32\"), not a list; write a list such as `[10.0.0.0/24]`"},
		{"network: nothing", head + oneNode + "networks:\n  dns:\n",
			"peers.yaml:6: networks.dns: has no value; write a list such as `[10.0.0.0/24]`"},
		{"network: named like a set of our own", head + oneNode + "networks:\n  open: []\n",
			"peers.yaml:6: networks.open: the name open is taken by the openings of `pghardend open`; choose another name"},
		{"network: named like a role", head + oneNode + "networks:\n  postgres: [10.0.0.0/24]\n",
			"peers.yaml:6: networks.postgres: a network cannot be named like a role; the nodes of a role are known from nodes:, choose another name"},
		{"network: upper case", head + oneNode + "networks:\n  DNS: [10.0.0.0/24]\n",
			"peers.yaml:6: networks.DNS: not a network name (a letter a-z, then at most 23 of a-z, 0-9, _ and -); write something like control_plane"},
		{"network: dot", head + oneNode + "networks:\n  dns.internal: [10.0.0.0/24]\n",
			"peers.yaml:6: networks.\"dns.internal\": not a network name (a letter a-z, then at most 23 of a-z, 0-9, _ and -); write something like control_plane"},
		{"network: too long", head + oneNode + "networks:\n  abbbbbbbbbbbbbbbbbbbbbbbb: []\n",
			"peers.yaml:6: networks.abbbbbbbbbbbbbbbbbbbbbbbb: not a network name (a letter a-z, then at most 23 of a-z, 0-9, _ and -); write something like control_plane"},
		{"CIDR: text", withCIDR("everywhere"),
			"peers.yaml:7: networks.applications[0]: \"everywhere\" is not a CIDR; write a CIDR such as 10.50.0.0/16 or fd00:50::/64"},
		{"CIDR: number", withCIDR("10"),
			"peers.yaml:7: networks.applications[0]: is a number (10), not text; write text such as `10.0.0.0/24`, or put it in quotes: \"10\""},
		{"CIDR: empty", withCIDR("\"\""),
			"peers.yaml:7: networks.applications[0]: \"\" is not a CIDR; write a CIDR such as 10.50.0.0/16 or fd00:50::/64"},
		{"CIDR: length", withCIDR("10.50.0.0/33"),
			"peers.yaml:7: networks.applications[0]: \"10.50.0.0/33\" is not a CIDR; write a CIDR such as 10.50.0.0/16 or fd00:50::/64"},
		{"CIDR: length with zero", withCIDR("10.50.0.0/08"),
			"peers.yaml:7: networks.applications[0]: \"10.50.0.0/08\" is not a CIDR; write a CIDR such as 10.50.0.0/16 or fd00:50::/64"},
		{"CIDR: host bits", withCIDR("10.50.3.7/16"),
			"peers.yaml:7: networks.applications[0]: \"10.50.3.7/16\" has bits set beyond its prefix length; write 10.50.0.0/16 for the network or 10.50.3.7/32 for the one address"},
		{"CIDR: host bits v6", withCIDR("\"fd00:50::1/64\""),
			"peers.yaml:7: networks.applications[0]: \"fd00:50::1/64\" has bits set beyond its prefix length; write fd00:50::/64 for the network or fd00:50::1/128 for the one address"},
		{"CIDR: no length", withCIDR("10.50.0.1"),
			"peers.yaml:7: networks.applications[0]: \"10.50.0.1\" has no prefix length; write 10.50.0.1/32 for this one address"},
		{"CIDR: no length v6", withCIDR("\"fd00::1\""),
			"peers.yaml:7: networks.applications[0]: \"fd00::1\" has no prefix length; write fd00::1/128 for this one address"},
		{"CIDR: mapped without length", withCIDR("\"::ffff:10.50.0.1\""),
			"peers.yaml:7: networks.applications[0]: \"::ffff:10.50.0.1\" has no prefix length; write 10.50.0.1/32 for this one address"},
		{"CIDR: everything", withCIDR("0.0.0.0/0"),
			"peers.yaml:7: networks.applications[0]: \"0.0.0.0/0\" is every address there is; list the networks that are really meant, such as 10.50.0.0/16"},
		{"CIDR: everything v6", withCIDR("\"::/0\""),
			"peers.yaml:7: networks.applications[0]: \"::/0\" is every address there is; list the networks that are really meant, such as 10.50.0.0/16"},
		{"CIDR: /0 with host bits", withCIDR("10.50.0.0/0"),
			"peers.yaml:7: networks.applications[0]: \"10.50.0.0/0\" is every address there is; list the networks that are really meant, such as 10.50.0.0/16"},
		{"CIDR: half of everything", withCIDR("128.0.0.0/1"),
			"peers.yaml:7: networks.applications[0]: \"128.0.0.0/1\" is 1/2 of all addresses; list the networks that are really meant, each a /8 or smaller"},
		{"CIDR: lost digit", withCIDR("10.50.0.0/1"),
			"peers.yaml:7: networks.applications[0]: \"10.50.0.0/1\" is 1/2 of all addresses; list the networks that are really meant, each a /8 or smaller"},
		{"CIDR: wide v6", withCIDR("\"2000::/3\""),
			"peers.yaml:7: networks.applications[0]: \"2000::/3\" is 1/8 of all addresses; list the networks that are really meant, each a /7 or smaller"},
		{"CIDR: mapped", withCIDR("\"::ffff:10.50.0.0/112\""),
			"peers.yaml:7: networks.applications[0]: \"::ffff:10.50.0.0/112\" is IPv4 mapped into IPv6; write 10.50.0.0/16"},
		{"CIDR: mapped with host bits", withCIDR("\"::ffff:10.50.0.7/112\""),
			"peers.yaml:7: networks.applications[0]: \"::ffff:10.50.0.7/112\" is IPv4 mapped into IPv6; write 10.50.0.0/16"},
		{"CIDR: all mapped", withCIDR("\"::ffff:0:0/96\""),
			"peers.yaml:7: networks.applications[0]: \"::ffff:0:0/96\" is IPv4 mapped into IPv6; write the IPv4 networks that are meant, such as 10.50.0.0/16"},
		{"CIDR: around mapped", withCIDR("\"::/64\""),
			"peers.yaml:7: networks.applications[0]: \"::/64\" contains the unspecified address; list the networks that hosts really have"},
		{"CIDR: zone", withCIDR("\"fe80::%eth0/64\""),
			"peers.yaml:7: networks.applications[0]: \"fe80::%eth0/64\" has a zone; write it without the % and what follows"},
		{"CIDR: loopback", withCIDR("127.0.0.0/8"),
			"peers.yaml:7: networks.applications[0]: \"127.0.0.0/8\" contains a loopback address; list the networks that hosts really have"},
		{"CIDR: multicast", withCIDR("239.0.0.0/8"),
			"peers.yaml:7: networks.applications[0]: \"239.0.0.0/8\" contains a multicast address; list the networks that hosts really have"},
		{"CIDR: multicast v6", withCIDR("\"ff00::/8\""),
			"peers.yaml:7: networks.applications[0]: \"ff00::/8\" contains a multicast address; list the networks that hosts really have"},
		{"CIDR: unspecified", withCIDR("0.0.0.0/8"),
			"peers.yaml:7: networks.applications[0]: \"0.0.0.0/8\" contains the unspecified address; list the networks that hosts really have"},
		{"CIDR: broadcast", withCIDR("255.255.255.0/24"),
			"peers.yaml:7: networks.applications[0]: \"255.255.255.0/24\" contains the broadcast address; list the networks that hosts really have"},
		{"CIDR: list", withCIDR("[10.0.0.0/24]"),
			"peers.yaml:7: networks.applications[0]: is a list, not text; write text such as `10.0.0.0/24`"},
		{"CIDR: duplicate", head + oneNode + "networks:\n  applications:\n    - \"fd00:50::/64\"\n    - 10.50.0.0/16\n    - \"fd00:50:0::/64\"\n",
			"peers.yaml:9: networks.applications[2]: fd00:50::/64 is in the list twice, first on line 7; remove one of the two"},
		{"several problems in line order", "instance: 5\nnodes:\n  - {name: a, role: pgpool, addresses: [10.0.0.1]}\n  - {name: a, role: pg, addresses: [10.0.0.1, \"::1\"]}\nnetworks:\n  all: [0.0.0.0/0]\nverzion: 1\n",
			"peers.yaml:1: instance: is a number (5), not text; write text such as `orders-prod`, or put it in quotes: \"5\"\n" +
				"peers.yaml:4: nodes[1].name: node a is here twice, first on line 3; give every node its own name\n" +
				"peers.yaml:4: nodes[1].role: \"pg\" is unknown; known values: postgres, pgpool\n" +
				"peers.yaml:4: nodes[1].addresses[0]: address 10.0.0.1 is here twice, first as nodes[0].addresses[0] on line 3; remove it where it is wrong\n" +
				"peers.yaml:4: nodes[1].addresses[1]: \"::1\" is a loopback address and cannot be a node's; write an address such as 10.20.1.10 or fd00:20:1::10\n" +
				"peers.yaml:6: networks.all[0]: \"0.0.0.0/0\" is every address there is; list the networks that are really meant, such as 10.50.0.0/16\n" +
				"peers.yaml:7: verzion: unknown key; did you mean version?"},
	}
	refusesPeers(t, tests)
}
