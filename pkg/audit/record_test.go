package audit

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// As RHEL 7 and 9, Debian 11 and 12, Ubuntu and Fedora write them.
const (
	rhel7     = `audit(1481076984.827:17): table=filter family=2 entries=0`
	ubuntu16  = `audit(1492648520.473:4678): table=filter family=2 entries=7`
	debian11  = `audit(1610380000.123:456): table=filter family=10 entries=4 op=xt_replace pid=1234 subj=unconfined comm="ip6tables"`
	debian12  = `audit(1700000000.001:77): table=filter:13 family=2 entries=3 op=nft_register_rule pid=812 subj=unconfined comm="iptables-nft-re"`
	rhel9     = `audit(1696000000.500:9012): table=firewalld:5 family=1 entries=235 op=nft_register_chain pid=845 subj=system_u:system_r:firewalld_t:s0 comm="firewalld"`
	unregistr = `audit(1696000000.501:9013): table=filter:14 family=2 entries=9 op=nft_unregister_table pid=99 subj=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023 comm=6E667420666C757368`

	seccompRHEL6   = `audit(1433785727.186:10262): auid=20003 uid=22 gid=22 ses=21 pid=11217 comm="sshd" exe="/usr/sbin/sshd" sig=31 arch=40000003 syscall=132 compat=0 ip=0xb7670aac code=0x0`
	seccompDebian  = `audit(1700000001.250:91): auid=4294967295 uid=110 gid=118 ses=4294967295 subj=unconfined pid=2201 comm="postgres" exe="/usr/lib/postgresql/15/bin/postgres" sig=0 arch=c000003e syscall=59 compat=0 ip=0x7f3f1c0d5b9b code=0x50000`
	seccompKill    = `audit(1700000001.250:92): auid=1000 uid=110 gid=118 ses=3 subj=system_u:system_r:postgresql_t:s0 pid=2202 comm="postgres" exe="/usr/lib/postgresql/15/bin/postgres" sig=31 arch=c000003e syscall=425 compat=0 ip=0x7f code=0x80000000`
	seccompHex     = `audit(1700000001.250:93): auid=1000 uid=110 gid=118 ses=3 pid=7 comm=6120706F737467726573 exe=2F746D702F6120622028 sig=0 arch=c00000b7 syscall=9999 compat=0 ip=0x7f code=0x7ffc0000`
	seccompKthread = `audit(1700000001.250:94): auid=1000 uid=110 gid=118 ses=3 pid=7 comm="x" exe=(null) sig=0 arch=c000003e syscall=1073741883 compat=0 ip=0x7f code=0x30000`
)

func at(sec, ms int64) time.Time { return time.UnixMilli(sec*1000 + ms).UTC() }

func TestParseChange(t *testing.T) {
	tests := []struct {
		name, text string
		want       Change
	}{
		{"RHEL 7: without a pid", rhel7, Change{At: at(1481076984, 827), Table: "filter", Family: "ipv4", UID: Unknown}},
		{"Ubuntu 16", ubuntu16, Change{At: at(1492648520, 473), Table: "filter", Family: "ipv4", Entries: 7, UID: Unknown}},
		{"Debian 11, legacy", debian11, Change{At: at(1610380000, 123), Table: "filter", Family: "ipv6", Op: "xt_replace", Entries: 4, PID: 1234, UID: Unknown, Command: "ip6tables"}},
		{"Debian 12, nft", debian12, Change{At: at(1700000000, 1), Table: "filter:13", Family: "ipv4", Op: "nft_register_rule", Entries: 3, PID: 812, UID: Unknown, Command: "iptables-nft-re"}},
		{"RHEL 9", rhel9, Change{At: at(1696000000, 500), Table: "firewalld:5", Family: "inet", Op: "nft_register_chain", Entries: 235, PID: 845, UID: Unknown, Command: "firewalld"}},
		{"a name in hex", unregistr, Change{At: at(1696000000, 501), Table: "filter:14", Family: "ipv4", Op: "nft_unregister_table", Entries: 9, PID: 99, UID: Unknown, Command: "nft flush"}},
		{"a table's name that forges fields",
			`audit(1.002:3): table=x family=2 entries=9 op=nft_reset pid=1 subj=y comm="systemd":4 family=1 entries=1 op=nft_register_table pid=666 subj=unconfined comm="nft"`,
			Change{At: at(1, 2), Table: `x family=2 entries=9 op=nft_reset pid=1 subj=y comm="systemd":4`, Family: "inet", Op: "nft_register_table", Entries: 1, PID: 666, UID: Unknown, Command: "nft"}},
		{"a table's name with a line end", "audit(1.002:3): table=a\nb:4 family=1 entries=1 op=nft_register_table pid=666 comm=\"nft\"\x00",
			Change{At: at(1, 2), Table: "a\nb:4", Family: "inet", Op: "nft_register_table", Entries: 1, PID: 666, UID: Unknown, Command: "nft"}},
		{"numbers out of range", `audit(1.002:3): table=filter family=77 entries=4294967295 op=xt_replace pid=99999999999999999999 comm=(null)`,
			Change{At: at(1, 2), Table: "filter", Family: "77", Op: "xt_replace", UID: Unknown}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, ok, err := Parse(TypeNetfilter, []byte(tt.text))
			if err != nil || !ok || r.Denial != nil {
				t.Fatalf("%+v, %t, %v", r, ok, err)
			}
			if d := cmp.Diff(tt.want, *r.Change); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestParseDenial(t *testing.T) {
	const postgres = "/usr/lib/postgresql/15/bin/postgres"
	tests := []struct {
		name, text string
		want       Denial
	}{
		{"RHEL 6, i386", seccompRHEL6, Denial{at(1433785727, 186), 11217, 22, "sshd", "/usr/sbin/sshd", "i386", "getpgid", true, ActionKill}},
		{"errno", seccompDebian, Denial{at(1700000001, 250), 2201, 110, "postgres", postgres, "x86_64", "execve", true, ActionErrno}},
		{"kill", seccompKill, Denial{at(1700000001, 250), 2202, 110, "postgres", postgres, "x86_64", "io_uring_setup", true, ActionKill}},
		{"a number that has no name", seccompHex, Denial{at(1700000001, 250), 7, 110, "a postgres", "/tmp/a b (", "aarch64", "9999", false, ActionLog}},
		{"x32, and no executable", seccompKthread, Denial{at(1700000001, 250), 7, 110, "x", "", "x86_64", "1073741883", false, ActionTrap}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, ok, err := Parse(TypeSeccomp, []byte(tt.text))
			if err != nil || !ok || r.Change != nil {
				t.Fatalf("%+v, %t, %v", r, ok, err)
			}
			if d := cmp.Diff(tt.want, *r.Denial); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct {
		name string
		typ  uint16
		text string
		want string // empty: not of interest
	}{
		{"another type", 1300, `audit(1.002:3): arch=c000003e syscall=59`, ""},
		{"no header", TypeNetfilter, `table=filter family=2 entries=0`, "invalid audit message header"},
		{"empty", TypeNetfilter, "", "invalid audit message header"},
		{"no table", TypeNetfilter, `audit(1.002:3): family=2 entries=0`, "no table and family"},
		{"no arch", TypeSeccomp, `audit(1.002:3): pid=1 syscall=59`, "arch: "},
		{"no syscall", TypeSeccomp, `audit(1.002:3): pid=1 arch=c000003e`, "syscall: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, ok, err := Parse(tt.typ, []byte(tt.text))
			if ok || (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%t, %v; want an error with %q", ok, err, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{rhel7, ubuntu16, debian11, debian12, rhel9, unregistr} {
		f.Add(TypeNetfilter, []byte(text))
	}
	for _, text := range []string{seccompRHEL6, seccompDebian, seccompKill, seccompHex, seccompKthread} {
		f.Add(TypeSeccomp, []byte(text))
	}
	f.Fuzz(func(t *testing.T, typ uint16, text []byte) {
		r, ok, err := Parse(typ, text)
		if ok != (err == nil && (r.Change != nil) != (r.Denial != nil)) && (typ == TypeNetfilter || typ == TypeSeccomp) {
			t.Fatalf("%+v, %t, %v", r, ok, err)
		}
		if c := r.Change; c != nil && (c.PID < 0 || c.UID < Unknown || c.Entries < 0) {
			t.Errorf("%+v", *c)
		}
		if d := r.Denial; d != nil && (d.PID < 0 || d.UID < Unknown || d.Syscall == "") {
			t.Errorf("%+v", *d)
		}
	})
}

// Whatever a table is called, the fields behind it are the kernel's.
func FuzzTableForgesNothing(f *testing.F) {
	f.Add(`x pid=1 comm="systemd"`)
	f.Add(" family=2")
	f.Add("a\nb")
	f.Fuzz(func(t *testing.T, table string) {
		table, _, _ = strings.Cut(table, "\x00") // where the kernel's own text ends
		r, ok, err := Parse(TypeNetfilter, []byte(`audit(1.002:3): table=`+table+`:4 family=1 entries=2 op=nft_register_table pid=666 subj=unconfined comm="nft"`))
		if err != nil || !ok {
			t.Fatalf("%q: %t, %v", table, ok, err)
		}
		c := *r.Change
		if c.Table != table+":4" || c.Family != "inet" || c.Entries != 2 || c.Op != "nft_register_table" || c.PID != 666 || c.Command != "nft" {
			t.Errorf("%q: %+v", table, c)
		}
	})
}
