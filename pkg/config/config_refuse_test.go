package config

import (
	"strings"
	"testing"
)

const (
	top         = "version: 1\nnode: pg-0\n"
	serviceYAML = top + `services:
  postgres:
    profile: postgres
    user: postgres
    command: [/usr/bin/postgres, -D, /data]
`
)

// withKey is a service with one more key.
func withKey(line string) string { return serviceYAML + "    " + line + "\n" }

// replaced is a service with another value.
func replaced(value, other string) string { return strings.Replace(serviceYAML, value, other, 1) }

func refusesConfig(t *testing.T, tests []refusal) {
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ParseConfig("pghardend.yaml", []byte(tt.text), "pg-0")
			checkRefusal(t, err, tt.want)
			if c.Node != "" || c.Services != nil {
				t.Errorf("a refused configuration must not be returned: %+v", c)
			}
		})
	}
}

// The file as a whole and everything but services.
func TestConfigFileRefused(t *testing.T) {
	tests := []refusal{
		{"empty file", "",
			"pghardend.yaml:1: the file is empty; begin it with `version: 1`"},
		{"missing version", "node: pg-0\n",
			"pghardend.yaml:1: version: missing; add `version: 1`"},
		{"wrong version", "version: 3\nnode: pg-0\n",
			"pghardend.yaml:1: version: version 3 is not supported; write `version: 1`, the only version that this program reads"},
		{"half-written", "version: 1\nruntime_dir: /run/pgh",
			"pghardend.yaml:2: the last line has no end, the file looks half-written; end it with a newline if it is complete, and replace files by rename"},
		{"several documents", "version: 1\n---\nnode: pg-0\n",
			"pghardend.yaml:2: a second YAML document begins here; keep one document in the file and no `---` after its first line"},
		{"unknown key", top + "peer_file: peers.yaml\n",
			"pghardend.yaml:3: peer_file: unknown key; did you mean peers_file?"},
		{"unknown key in upper case", top + "NODE: pg-1\n",
			"pghardend.yaml:3: NODE: unknown key; did you mean node?"},
		{"unknown dotted key", top + "firewall.backend: nft\n",
			"pghardend.yaml:3: \"firewall.backend\": unknown key; known keys here: version, node, peers_file, runtime_dir, state_dir, firewall, flows, sysctl, reconcile, metrics, agent, denials, selinux, services"},
		{"duplicate key", top + "node: pg-1\n",
			"pghardend.yaml:3: node: the key is here twice, first on line 2; remove one of the two"},
		{"alias bomb", top + "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n",
			"pghardend.yaml:3: YAML anchors (&a) are not supported here; write the value out in full\n" +
				"pghardend.yaml:3: a: unknown key; known keys here: version, node, peers_file, runtime_dir, state_dir, firewall, flows, sysctl, reconcile, metrics, agent, denials, selinux, services\n" +
				"pghardend.yaml:4: YAML anchors (&b) are not supported here; write the value out in full\n" +
				"pghardend.yaml:4: YAML aliases (*a) are not supported here; write the value out in full\n" +
				"pghardend.yaml:4: b: unknown key; known keys here: version, node, peers_file, runtime_dir, state_dir, firewall, flows, sysctl, reconcile, metrics, agent, denials, selinux, services\n" +
				"pghardend.yaml:5: YAML anchors (&c) are not supported here; write the value out in full\n" +
				"pghardend.yaml:5: YAML aliases (*b) are not supported here; write the value out in full\n" +
				"pghardend.yaml:5: c: unknown key; known keys here: version, node, peers_file, runtime_dir, state_dir, firewall, flows, sysctl, reconcile, metrics, agent, denials, selinux, services"},
		{"merge key", top + "firewall: &f {scope: host}\nreconcile:\n  <<: *f\n",
			"pghardend.yaml:3: YAML anchors (&f) are not supported here; write the value out in full\n" +
				"pghardend.yaml:5: YAML merge keys (<<) are not supported here; write the value out in full\n" +
				"pghardend.yaml:5: YAML aliases (*f) are not supported here; write the value out in full"},
		{"node: FQDN", "version: 1\nnode: pg-0.example.com\n",
			"pghardend.yaml:2: node: \"pg-0.example.com\" is not a node name (an RFC 1123 label: at most 63 of a-z, 0-9 and -, no - at either end); write something like pg-0"},
		{"node: number", "version: 1\nnode: 0\n",
			"pghardend.yaml:2: node: is a number (0), not text; write text such as `pg-0`, or put it in quotes: \"0\""},
		{"node: empty", "version: 1\nnode: \"\"\n",
			"pghardend.yaml:2: node: \"\" is not a node name (an RFC 1123 label: at most 63 of a-z, 0-9 and -, no - at either end); write something like pg-0"},
		{"peers_file: empty", top + "peers_file: \"\"\n",
			"pghardend.yaml:3: peers_file: \"\" is not the path of a file; write `peers_file: peers.yaml`"},
		{"peers_file: list", top + "peers_file: [a]\n",
			"pghardend.yaml:3: peers_file: is a list, not text; write text such as `peers.yaml`"},
		{"peers_file: directory", top + "peers_file: /etc/pghardend/\n",
			"pghardend.yaml:3: peers_file: \"/etc/pghardend/\" is not the path of a file; write `peers_file: peers.yaml`"},
		{"runtime_dir: relative", top + "runtime_dir: run\n",
			"pghardend.yaml:3: runtime_dir: \"run\" is a relative path; write an absolute path such as /run/pghardend"},
		{"runtime_dir: root", top + "runtime_dir: //\n",
			"pghardend.yaml:3: runtime_dir: \"//\" is the root directory; write an absolute path such as /run/pghardend"},
		{"state_dir: relative", top + "state_dir: ./state\n",
			"pghardend.yaml:3: state_dir: \"./state\" is a relative path; write an absolute path such as /var/lib/pghardend"},
		{"state_dir: dots", top + "state_dir: /var/lib/../tmp\n",
			"pghardend.yaml:3: state_dir: \"/var/lib/../tmp\" leads through ..; write an absolute path such as /var/lib/pghardend"},
		{"state_dir: empty", top + "state_dir: \"\"\n",
			"pghardend.yaml:3: state_dir: the path is empty; write an absolute path such as /var/lib/pghardend"},
		{"firewall: text", top + "firewall: nft\n",
			"pghardend.yaml:3: firewall: is text (\"nft\"), not a mapping; write a mapping such as `backend: auto`"},
		{"firewall: list", top + "firewall: [nft]\n",
			"pghardend.yaml:3: firewall: is a list, not a mapping; write a mapping such as `backend: auto`"},
		{"firewall: nothing", top + "firewall:\n",
			"pghardend.yaml:3: firewall: has no value; write a mapping such as `backend: auto`"},
		{"firewall: unknown key", top + "firewall: {back_end: nft}\n",
			"pghardend.yaml:3: firewall.back_end: unknown key; did you mean backend?"},
		{"backend: unknown", top + "firewall: {backend: nftables}\n",
			"pghardend.yaml:3: firewall.backend: \"nftables\" is unknown; known values: auto, nft, legacy"},
		{"backend: misspelt", top + "firewall: {backend: NFT}\n",
			"pghardend.yaml:3: firewall.backend: \"NFT\" is unknown; did you mean nft?"},
		{"scope: unknown", top + "firewall: {scope: everything}\n",
			"pghardend.yaml:3: firewall.scope: \"everything\" is unknown; known values: host, siblings"},
		{"interval: no unit", top + "reconcile: {interval: 1}\n",
			"pghardend.yaml:3: reconcile.interval: 1 has no unit; write a number with a unit (ms, s, m, h) such as 1s"},
		{"interval: fraction without unit", top + "reconcile: {interval: 0.5}\n",
			"pghardend.yaml:3: reconcile.interval: 0.5 has no unit; write a number with a unit (ms, s, m, h) such as 1s"},
		{"interval: text", top + "reconcile: {interval: often}\n",
			"pghardend.yaml:3: reconcile.interval: \"often\" is not a duration; write a number with a unit (ms, s, m, h) such as 1s"},
		{"interval: too short", top + "reconcile: {interval: 10ms}\n",
			"pghardend.yaml:3: reconcile.interval: \"10ms\" is out of range; write a duration from 100ms to 1m"},
		{"interval: too long", top + "reconcile: {interval: 2m}\n",
			"pghardend.yaml:3: reconcile.interval: \"2m\" is out of range; write a duration from 100ms to 1m"},
		{"interval: negative", top + "reconcile: {interval: -1s}\n",
			"pghardend.yaml:3: reconcile.interval: \"-1s\" is out of range; write a duration from 100ms to 1m"},
		{"interval: nothing", top + "reconcile: {interval: }\n",
			"pghardend.yaml:3: reconcile.interval: has no value; write text such as `1s`"},
		{"full: too short", top + "reconcile: {full: 500ms}\n",
			"pghardend.yaml:3: reconcile.full: \"500ms\" is out of range; write a duration from 1s to 10m"},
		{"full: too long", top + "reconcile: {full: 11m}\n",
			"pghardend.yaml:3: reconcile.full: \"11m\" is out of range; write a duration from 1s to 10m"},
		{"full: no unit", top + "reconcile: {full: 30}\n",
			"pghardend.yaml:3: reconcile.full: 30 has no unit; write a number with a unit (ms, s, m, h) such as 30s"},
		{"metrics: text", top + "metrics: on\n",
			"pghardend.yaml:3: metrics: is text (\"on\"), not a mapping; write a mapping such as `listen: 127.0.0.1:9188`"},
		{"metrics: unknown key", top + "metrics: {lisen: x}\n",
			"pghardend.yaml:3: metrics.lisen: unknown key; did you mean listen?"},
		{"metrics.listen: nothing", top + "metrics: {listen: }\n",
			"pghardend.yaml:3: metrics.listen: has no value; write text such as `127.0.0.1:9188`"},
		{"services: list", top + "services: []\n",
			"pghardend.yaml:3: services: is a list, not a mapping; write a mapping such as `postgres: {profile: postgres, …}`"},
	}
	refusesConfig(t, tests)
}

// Services, their accounts and commands.
func TestConfigServicesRefused(t *testing.T) {
	tests := []refusal{
		{"service: upper case", replaced("postgres:\n    prof", "Postgres:\n    prof"),
			"pghardend.yaml:4: services.Postgres: \"Postgres\" is not a service name (a letter a-z, then at most 31 of a-z, 0-9 and -); write postgres"},
		{"service: dot", replaced("postgres:\n    prof", "pg.main:\n    prof"),
			"pghardend.yaml:4: services.\"pg.main\": \"pg.main\" is not a service name (a letter a-z, then at most 31 of a-z, 0-9 and -); write something like postgres"},
		{"service: nothing", top + "services:\n  postgres:\n",
			"pghardend.yaml:4: services.postgres: has no value; write a mapping such as `profile: postgres`"},
		{"service: empty", top + "services:\n  postgres: {}\n",
			"pghardend.yaml:4: services.postgres.profile: missing; add `profile: postgres`\n" +
				"pghardend.yaml:4: services.postgres.user: missing; add `user: postgres`\n" +
				"pghardend.yaml:4: services.postgres.command: missing; add `command: [/usr/lib/postgresql/15/bin/postgres, -D, /var/lib/postgresql/15/main]`"},
		{"service: unknown key", withKey("capability: [CAP_KILL]"),
			"pghardend.yaml:8: services.postgres.capability: unknown key; did you mean capabilities?"},
		{"service: duplicate key", withKey("user: root"),
			"pghardend.yaml:8: services.postgres.user: the key is here twice, first on line 6; remove one of the two"},
		{"service: key in upper case", withKey("Limits: {}"),
			"pghardend.yaml:8: services.postgres.Limits: unknown key; did you mean limits?"},
		{"profile: path", replaced("profile: postgres", "profile: ../postgres"),
			"pghardend.yaml:5: services.postgres.profile: \"../postgres\" is not the name of a profile; write something like postgres"},
		{"user: negative", replaced("user: postgres", "user: -1"),
			"pghardend.yaml:6: services.postgres.user: \"-1\" is neither the name nor the number of a user; write the name of a user such as postgres, or its decimal number"},
		{"user: no change", replaced("user: postgres", "user: 4294967295"),
			"pghardend.yaml:6: services.postgres.user: \"4294967295\" is neither the name nor the number of a user; write the name of a user such as postgres, or its decimal number"},
		{"user: octal", replaced("user: postgres", "user: 0750"),
			"pghardend.yaml:6: services.postgres.user: \"0750\" is neither the name nor the number of a user; write the name of a user such as postgres, or its decimal number"},
		{"user: colon", replaced("user: postgres", "user: \"postgres:postgres\""),
			"pghardend.yaml:6: services.postgres.user: \"postgres:postgres\" is neither the name nor the number of a user; write the name of a user such as postgres, or its decimal number"},
		{"user: boolean", replaced("user: postgres", "user: true"),
			"pghardend.yaml:6: services.postgres.user: is a boolean (true), not text; write text such as `postgres`, or put it in quotes: \"true\""},
		{"groups: text", withKey("groups: ssl-cert"),
			"pghardend.yaml:8: services.postgres.groups: is text (\"ssl-cert\"), not a list; write a list such as `[ssl-cert]`"},
		{"groups: duplicate", withKey("groups: [ssl-cert, 104, ssl-cert]"),
			"pghardend.yaml:8: services.postgres.groups[2]: ssl-cert is in the list twice, first as services.postgres.groups[0] on line 8; remove one of the two"},
		{"groups: bad name", withKey("groups: [\"ssl cert\"]"),
			"pghardend.yaml:8: services.postgres.groups[0]: \"ssl cert\" is neither the name nor the number of a group; write the name of a group such as ssl-cert, or its decimal number"},
		{"command: empty", replaced("[/usr/bin/postgres, -D, /data]", "[]"),
			"pghardend.yaml:7: services.postgres.command: the command is empty; write `command: [/usr/lib/postgresql/15/bin/postgres, -D, /var/lib/postgresql/15/main]`"},
		{"command: text", replaced("[/usr/bin/postgres, -D, /data]", "/usr/bin/postgres -D /data"),
			"pghardend.yaml:7: services.postgres.command: is text (\"/usr/bin/postgres -D /data\"), not a list; write a list such as `[/usr/lib/postgresql/15/bin/postgres]`"},
		{"command: relative", replaced("[/usr/bin/postgres, -D, /data]", "[postgres, -D, /data]"),
			"pghardend.yaml:7: services.postgres.command[0]: \"postgres\" is a relative path; write the absolute path of the program such as /usr/lib/postgresql/15/bin/postgres"},
		{"command: dots", replaced("[/usr/bin/postgres, -D, /data]", "[/usr/../bin/postgres]"),
			"pghardend.yaml:7: services.postgres.command[0]: \"/usr/../bin/postgres\" leads through ..; write the absolute path of the program such as /usr/lib/postgresql/15/bin/postgres"},
		{"command: directory", replaced("[/usr/bin/postgres, -D, /data]", "[/usr/bin/]"),
			"pghardend.yaml:7: services.postgres.command[0]: \"/usr/bin/\" is not the path of a file; write the absolute path of the program such as /usr/lib/postgresql/15/bin/postgres"},
		{"command: empty path", replaced("[/usr/bin/postgres, -D, /data]", "[\"\"]"),
			"pghardend.yaml:7: services.postgres.command[0]: the path is empty; write the absolute path of the program such as /usr/lib/postgresql/15/bin/postgres"},
		{"command: number", replaced("[/usr/bin/postgres, -D, /data]", "[/usr/bin/postgres, -p, 5432]"),
			"pghardend.yaml:7: services.postgres.command[2]: is a number (5432), not text; write text such as `/usr/lib/postgresql/15/bin/postgres`, or put it in quotes: \"5432\""},
		{"command: NUL", replaced("[/usr/bin/postgres, -D, /data]", "[/usr/bin/postgres, \"a\\0b\"]"),
			"pghardend.yaml:7: services.postgres.command[1]: \"a\\x00b\" contains a control character (U+0000); remove it: NUL, newlines and the like are not allowed"},
		{"command: newline", replaced("[/usr/bin/postgres, -D, /data]", "[/usr/bin/postgres, \"a\\nb\"]"),
			"pghardend.yaml:7: services.postgres.command[1]: \"a\\nb\" contains a control character (U+000A); remove it: NUL, newlines and the like are not allowed"},
		{"command: nothing in the list", replaced("[/usr/bin/postgres, -D, /data]", "[/usr/bin/postgres, ~]"),
			"pghardend.yaml:7: services.postgres.command[1]: has no value; write text such as `/usr/lib/postgresql/15/bin/postgres`"},
		{"command: relative data directory", replaced("[/usr/bin/postgres, -D, /data]", "[/usr/bin/postgres, -D, main]"),
			"pghardend.yaml:7: services.postgres.command: the data directory \"main\" is a relative path; write an absolute path after -D"},
		{"data_dir: relative", withKey("data_dir: main"),
			"pghardend.yaml:8: services.postgres.data_dir: \"main\" is a relative path; write an absolute path such as /var/lib/postgresql/15/main"},
		{"data_dir: another than the command's", withKey("data_dir: /other"),
			"pghardend.yaml:8: services.postgres.data_dir: \"/other\" is not the directory of the command, \"/data\"; remove data_dir or make both the same"},
		{"data_dir: shared", serviceYAML + "  second:\n    profile: postgres\n    user: postgres\n    command: [/usr/bin/postgres, -D/data/]\n",
			"pghardend.yaml:8: services.second: the data directory \"/data\" is also that of services.postgres on line 4; give each service its own"},
	}
	refusesConfig(t, tests)
}

// Limits, capabilities, environment, oom score and time-outs.
func TestConfigConfinementRefused(t *testing.T) {
	tests := []refusal{
		{"limits: list", withKey("limits: [nofile]"),
			"pghardend.yaml:8: services.postgres.limits: is a list, not a mapping; write a mapping such as `nofile: 65536`"},
		{"limits: unknown", withKey("limits: {files: 5}"),
			"pghardend.yaml:8: services.postgres.limits.files: unknown limit; known limits: as, core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime, sigpending, stack"},
		{"limits: misspelt", withKey("limits: {nofiles: 5}"),
			"pghardend.yaml:8: services.postgres.limits.nofiles: unknown limit; did you mean nofile?"},
		{"limits: C name", withKey("limits: {RLIMIT_NOFILE: 5}"),
			"pghardend.yaml:8: services.postgres.limits.RLIMIT_NOFILE: unknown limit; did you mean nofile?"},
		{"limits: negative", withKey("limits: {nofile: -1}"),
			"pghardend.yaml:8: services.postgres.limits.nofile: -1 is negative; write unlimited if there shall be no limit, else a whole number"},
		{"limits: fraction", withKey("limits: {nofile: 1.5}"),
			"pghardend.yaml:8: services.postgres.limits.nofile: 1.5 is not a whole number; write a whole number (bytes, seconds or a count, as setrlimit(2) has it), unlimited, or {soft: 1024, hard: 4096}"},
		{"limits: text", withKey("limits: {memlock: 64k}"),
			"pghardend.yaml:8: services.postgres.limits.memlock: is text (\"64k\"), not a number; write a whole number (bytes, seconds or a count, as setrlimit(2) has it), unlimited, or {soft: 1024, hard: 4096}"},
		{"limits: Unlimited", withKey("limits: {memlock: Unlimited}"),
			"pghardend.yaml:8: services.postgres.limits.memlock: is text (\"Unlimited\"), not a number; write a whole number (bytes, seconds or a count, as setrlimit(2) has it), unlimited, or {soft: 1024, hard: 4096}"},
		{"limits: octal", withKey("limits: {nofile: 01024}"),
			"pghardend.yaml:8: services.postgres.limits.nofile: 01024 is not a decimal number; write a whole number (bytes, seconds or a count, as setrlimit(2) has it), unlimited, or {soft: 1024, hard: 4096}"},
		{"limits: too large", withKey("limits: {as: 18446744073709551615}"),
			"pghardend.yaml:8: services.postgres.limits.as: 18446744073709551615 is too large; write unlimited if there shall be no limit"},
		{"limits: far too large", withKey("limits: {as: 99999999999999999999}"),
			"pghardend.yaml:8: services.postgres.limits.as: 99999999999999999999 is too large; write unlimited if there shall be no limit"},
		{"limits: nothing", withKey("limits: {as: }"),
			"pghardend.yaml:8: services.postgres.limits.as: has no value; write a whole number (bytes, seconds or a count, as setrlimit(2) has it), unlimited, or {soft: 1024, hard: 4096}"},
		{"limits: soft above hard", withKey("limits: {nofile: {soft: 10, hard: 5}}"),
			"pghardend.yaml:8: services.postgres.limits.nofile: the soft limit 10 is above the hard limit 5; raise hard or lower soft"},
		{"limits: soft unlimited", withKey("limits: {core: {soft: unlimited, hard: 5}}"),
			"pghardend.yaml:8: services.postgres.limits.core: the soft limit unlimited is above the hard limit 5; raise hard or lower soft"},
		{"limits: no hard", withKey("limits: {nofile: {soft: 10}}"),
			"pghardend.yaml:8: services.postgres.limits.nofile.hard: missing; add `hard: 1024`"},
		{"limits: unknown key", withKey("limits: {nofile: {soft: 10, hard: 20, max: 30}}"),
			"pghardend.yaml:8: services.postgres.limits.nofile.max: unknown key; known keys here: soft, hard"},
		{"limits: list as value", withKey("limits: {nofile: [1, 2]}"),
			"pghardend.yaml:8: services.postgres.limits.nofile: is a list, not a number; write a number such as `1`"},
		{"limits: duplicate", withKey("limits: {nofile: 1, nofile: 2}"),
			"pghardend.yaml:8: services.postgres.limits.nofile: the key is here twice, first on line 8; remove one of the two"},
		{"capabilities: text", withKey("capabilities: CAP_NET_RAW"),
			"pghardend.yaml:8: services.postgres.capabilities: is text (\"CAP_NET_RAW\"), not a list; write a list such as `[CAP_NET_RAW]`"},
		{"capabilities: shape", withKey("capabilities: [\"CAP NET\"]"),
			"pghardend.yaml:8: services.postgres.capabilities[0]: \"CAP NET\" is not the name of a capability; write something like CAP_NET_RAW"},
		{"capabilities: number", withKey("capabilities: [12]"),
			"pghardend.yaml:8: services.postgres.capabilities[0]: is a number (12), not text; write text such as `CAP_NET_RAW`, or put it in quotes: \"12\""},
		{"capabilities: duplicate", withKey("capabilities: [CAP_KILL, CAP_KILL]"),
			"pghardend.yaml:8: services.postgres.capabilities[1]: CAP_KILL is in the list twice, first as services.postgres.capabilities[0] on line 8; remove one of the two"},
		{"environment: mapping", withKey("environment: {LANG: C}"),
			"pghardend.yaml:8: services.postgres.environment: is a mapping, not a list; write a list such as `[LANG=C.UTF-8]`"},
		{"environment: malformed", withKey("environment: [LANG]"),
			"pghardend.yaml:8: services.postgres.environment[0]: \"LANG\" is not NAME=value; write something like LANG=C.UTF-8"},
		{"environment: no name", withKey("environment: [\"=C\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: \"=C\" is not NAME=value; write something like LANG=C.UTF-8"},
		{"environment: name with a space", withKey("environment: [\"LANG =C\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: \"LANG =C\" is not NAME=value; write something like LANG=C.UTF-8"},
		{"environment: duplicate", withKey("environment: [LANG=C, TZ=UTC, LANG=de_DE]"),
			"pghardend.yaml:8: services.postgres.environment[2]: LANG is in the list twice, first as services.postgres.environment[0] on line 8; remove one of the two"},
		{"environment: newline", withKey("environment: [\"A=b\\nc\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: \"A=b\\nc\" contains a control character (U+000A); remove it: NUL, newlines and the like are not allowed"},
		{"environment: LD_PRELOAD", withKey("environment: [\"LD_PRELOAD=/tmp/x.so\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: LD_PRELOAD makes the process load code of somebody's choice; remove it; install libraries and locales where the system looks for them"},
		{"environment: LD_LIBRARY_PATH", withKey("environment: [\"LD_LIBRARY_PATH=/tmp\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: LD_LIBRARY_PATH makes the process load code of somebody's choice; remove it; install libraries and locales where the system looks for them"},
		{"environment: LD_AUDIT", withKey("environment: [\"LD_AUDIT=/tmp/x.so\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: LD_AUDIT makes the process load code of somebody's choice; remove it; install libraries and locales where the system looks for them"},
		{"environment: GLIBC_TUNABLES", withKey("environment: [\"GLIBC_TUNABLES=glibc.malloc.check=3\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: GLIBC_TUNABLES makes the process load code of somebody's choice; remove it; install libraries and locales where the system looks for them"},
		{"environment: GCONV_PATH", withKey("environment: [\"GCONV_PATH=/tmp\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: GCONV_PATH makes the process load code of somebody's choice; remove it; install libraries and locales where the system looks for them"},
		{"environment: GETCONF_DIR", withKey("environment: [\"GETCONF_DIR=/tmp\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: GETCONF_DIR makes the process load code of somebody's choice; remove it; install libraries and locales where the system looks for them"},
		{"environment: LOCPATH", withKey("environment: [\"LOCPATH=/tmp\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: LOCPATH makes the process load code of somebody's choice; remove it; install libraries and locales where the system looks for them"},
		{"environment: NLSPATH", withKey("environment: [\"NLSPATH=/tmp\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: NLSPATH makes the process load code of somebody's choice; remove it; install libraries and locales where the system looks for them"},
		{"environment: BASH_ENV", withKey("environment: [\"BASH_ENV=/tmp/x\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: BASH_ENV makes the process load code of somebody's choice; remove it; install libraries and locales where the system looks for them"},
		{"environment: ENV", withKey("environment: [\"ENV=/tmp/x\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: ENV makes the process load code of somebody's choice; remove it; install libraries and locales where the system looks for them"},
		{"environment: SHELLOPTS", withKey("environment: [\"SHELLOPTS=xtrace\"]"),
			"pghardend.yaml:8: services.postgres.environment[0]: SHELLOPTS makes the process load code of somebody's choice; remove it; install libraries and locales where the system looks for them"},
		{"oom_score_adj: too low", withKey("oom_score_adj: -1001"),
			"pghardend.yaml:8: services.postgres.oom_score_adj: -1001 is out of range; write a whole number from -1000 to 1000"},
		{"oom_score_adj: too high", withKey("oom_score_adj: 1001"),
			"pghardend.yaml:8: services.postgres.oom_score_adj: 1001 is out of range; write a whole number from -1000 to 1000"},
		{"oom_score_adj: huge", withKey("oom_score_adj: 99999999999999999999"),
			"pghardend.yaml:8: services.postgres.oom_score_adj: 99999999999999999999 is out of range; write a whole number from -1000 to 1000"},
		{"oom_score_adj: fraction", withKey("oom_score_adj: 0.5"),
			"pghardend.yaml:8: services.postgres.oom_score_adj: 0.5 is not a whole number; write a whole number from -1000 to 1000"},
		{"oom_score_adj: text", withKey("oom_score_adj: \"5\""),
			"pghardend.yaml:8: services.postgres.oom_score_adj: is text (\"5\"), not a number; write a whole number from -1000 to 1000"},
		{"start_timeout: no unit", withKey("start_timeout: 60"),
			"pghardend.yaml:8: services.postgres.start_timeout: 60 has no unit; write a number with a unit (ms, s, m, h) such as 60s"},
		{"start_timeout: zero", withKey("start_timeout: 0s"),
			"pghardend.yaml:8: services.postgres.start_timeout: \"0s\" is out of range; write a duration from 100ms to 24h"},
		{"stop_timeout: too long", withKey("stop_timeout: 25h"),
			"pghardend.yaml:8: services.postgres.stop_timeout: \"25h\" is out of range; write a duration from 100ms to 24h"},
		{"stop_timeout: text", withKey("stop_timeout: \"60\""),
			"pghardend.yaml:8: services.postgres.stop_timeout: \"60\" is not a duration; write a number with a unit (ms, s, m, h) such as 60s"},
	}
	refusesConfig(t, tests)
}
