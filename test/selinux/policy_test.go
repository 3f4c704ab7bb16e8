package selinux

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
)

const store = "../../build/selinux/store"

const (
	postgres       = "pghardend_postgres_t"
	pgpool         = "pghardend_pgpool_t"
	postgresHelper = "pghardend_postgres_helper_t"
	pgpoolHelper   = "pghardend_pgpool_helper_t"
	agent          = "pghardend_t"
)

var confined = []string{postgres, pgpool, postgresHelper, pgpoolHelper}

// A question is what a domain may do to which types. A target is "type" or, where it needs a boolean, "type if boolean".
// ld_so_t, lib_t and textrel_shlib_t, devtty_t and setrans_t come from the base policy: it grants them to every domain, as it does writing to files of the domain's own
// type, which are those in /proc/self.
type question struct {
	source, class, perm string
	want                []string
}

func (q question) String() string { return q.source + " " + q.class + " " + q.perm }

// questions are those with an answer that is not simply "nothing".
func questions() []question {
	libraries := []string{"ld_so_t", "lib_t", "textrel_shlib_t"}
	with := func(base []string, more ...string) []string {
		all := slices.Concat(base, more)
		slices.Sort(all)
		return all
	}
	return []question{
		{postgres, "file", "execute", with(libraries, "pghardend_postgres_exec_t", "pghardend_exec_t if pghardend_drill",
			"shell_exec_t if pghardend_postgres_helpers", "pghardend_helper_exec_t if pghardend_postgres_helpers")},
		{postgres, "file", "execute_no_trans", nil},
		{postgres, "file", "entrypoint", []string{"pghardend_exec_t if pghardend_drill", "pghardend_postgres_exec_t"}},
		{postgres, "process", "transition", []string{"pghardend_postgres_helper_t if pghardend_postgres_helpers"}},
		{postgres, "process", "execmem", []string{"pghardend_postgres_t if pghardend_postgres_jit"}},
		{postgres, "tcp_socket", "name_bind", []string{"postgresql_port_t"}},
		{postgres, "tcp_socket", "name_connect", []string{"dns_port_t", "postgresql_port_t"}},
		{postgres, "udp_socket", "name_bind", nil},
		{postgres, "file", "write", []string{"hugetlbfs_t", "pghardend_postgres_archive_t", "pghardend_postgres_data_t", postgres,
			"pghardend_postgres_tmpfs_t", "pghardend_socket_t"}},
		{postgres, "file", "unlink", []string{"pghardend_postgres_archive_t", "pghardend_postgres_data_t", "pghardend_postgres_tmpfs_t",
			"pghardend_socket_t"}},
		{postgres, "dir", "remove_name", []string{"pghardend_postgres_archive_t", "pghardend_postgres_data_t", "pghardend_socket_t", "tmpfs_t"}},
		{postgres, "sock_file", "write", []string{"devlog_t", "init_runtime_t", "pghardend_socket_t", "setrans_runtime_t"}},
		{postgres, "unix_stream_socket", "connectto", []string{postgres, "setrans_t"}},
		{postgres, "chr_file", "write", []string{"devtty_t", "null_device_t", "zero_device_t"}},
		{postgres, "netlink_route_socket", "nlmsg_write", nil},

		{pgpool, "file", "execute", with(libraries, "pghardend_pgpool_exec_t", "pghardend_exec_t if pghardend_drill",
			"shell_exec_t if pghardend_pgpool_helpers", "pghardend_helper_exec_t if pghardend_pgpool_helpers",
			"ifconfig_exec_t if pghardend_pgpool_vip", "ping_exec_t if pghardend_pgpool_vip", "ping_exec_t if pghardend_pgpool_ping")},
		{pgpool, "file", "execute_no_trans", []string{"ifconfig_exec_t if pghardend_pgpool_vip", "ping_exec_t if pghardend_pgpool_ping",
			"ping_exec_t if pghardend_pgpool_vip"}},
		{pgpool, "file", "entrypoint", []string{"pghardend_exec_t if pghardend_drill", "pghardend_pgpool_exec_t"}},
		{pgpool, "process", "transition", []string{"pghardend_pgpool_helper_t if pghardend_pgpool_helpers"}},
		{pgpool, "process", "execmem", nil},
		{pgpool, "tcp_socket", "name_bind", []string{"pghardend_pcp_port_t", "pghardend_pgpool_port_t", "pghardend_watchdog_port_t"}},
		{pgpool, "tcp_socket", "name_connect", []string{"dns_port_t", "pghardend_watchdog_port_t", "postgresql_port_t"}},
		{pgpool, "udp_socket", "name_bind", []string{"pghardend_heartbeat_port_t"}},
		{pgpool, "file", "write", []string{"hugetlbfs_t", "pghardend_pgpool_data_t", pgpool, "pghardend_pgpool_tmpfs_t", "pghardend_socket_t"}},
		{pgpool, "netlink_route_socket", "nlmsg_write", []string{"pghardend_pgpool_t if pghardend_pgpool_vip"}},

		{postgresHelper, "file", "execute", with(libraries, "bin_t if pghardend_helpers_bin", "pghardend_helper_exec_t", "shell_exec_t",
			"ssh_exec_t if pghardend_helpers_ssh")},
		{postgresHelper, "tcp_socket", "name_bind", nil},
		{postgresHelper, "tcp_socket", "name_connect", []string{"dns_port_t if pghardend_helpers_https", "dns_port_t if pghardend_helpers_ssh",
			"http_port_t if pghardend_helpers_https", "ssh_port_t if pghardend_helpers_ssh"}},
		{postgresHelper, "file", "write", []string{"pghardend_postgres_archive_t", "pghardend_postgres_data_t", postgresHelper}},
		{pgpoolHelper, "tcp_socket", "name_bind", nil},
		{pgpoolHelper, "file", "write", []string{pgpoolHelper}},

		// The agent may stop and look at the processes of services, and become one; it writes to no data and to no program.
		{agent, "process", "ptrace", []string{"pghardend_helper", "pghardend_service", "postgresql_t"}},
		{agent, "process", "transition", []string{"pghardend_service", "semanage_t", "setfiles_t"}},
		{agent, "process2", "nnp_transition", []string{"pghardend_service", "semanage_t", "setfiles_t"}},
		{agent, "file", "write", []string{"boolean_t", "cgroup_t", "iptables_runtime_t", "pghardend_confined", "pghardend_runtime_t", "pghardend_t",
			"pghardend_tmp_t", "pghardend_var_lib_t", "security_t", "sysctl_net_t", "tracefs_t"}},
		{agent, "sock_file", "write", []string{"init_runtime_t", "pghardend_runtime_t", "pghardend_socket_t", "setrans_runtime_t"}},
		{agent, "unix_stream_socket", "connectto", []string{"pghardend_service", agent, "setrans_t"}},
		{agent, "dir", "relabelfrom", []string{"non_security_file_type", "pghardend_content", "unlabeled_t"}},
		{agent, "dir", "relabelto", []string{"pghardend_content"}},
		{agent, "security", "setbool", []string{"security_t"}},
		{agent, "security", "load_policy", nil},
		{agent, "tcp_socket", "name_connect", nil},
		{agent, "memprotect", "mmap_zero", []string{"pghardend_t"}},
	}
}

// never is what no confined domain may do to anything, whatever booleans say.
var never = map[string][]string{
	"process":                       {"ptrace", "execstack", "execheap", "setcurrent", "dyntransition", "setexec", "setfscreate"},
	"file":                          {"execmod:not textrel_shlib_t", "mounton", "relabelfrom", "relabelto"},
	"dir":                           {"mounton", "relabelto"},
	"blk_file":                      {"read", "write", "create"},
	"chr_file":                      {"create", "mounton"},
	"system":                        {"module_load", "module_request"},
	"kernel_service":                {"use_as_override"},
	"bpf":                           {"prog_load", "map_create"},
	"perf_event":                    {"open"},
	"io_uring":                      {"override_creds", "sqpoll"},
	"memprotect":                    {"mmap_zero"},
	"user_namespace":                {"create"},
	"capability":                    {"sys_admin", "sys_ptrace", "sys_module", "sys_rawio", "setuid", "setgid", "dac_override"},
	"capability2":                   {"mac_admin", "mac_override", "bpf", "perfmon"},
	"security":                      {"setenforce", "load_policy", "setbool"},
	"rawip_socket":                  {"create"},
	"alg_socket":                    {"create"},
	"vsock_socket":                  {"create"},
	"bluetooth_socket":              {"create"},
	"key_socket":                    {"create"},
	"sctp_socket":                   {"create"},
	"dccp_socket":                   {"create"},
	"tipc_socket":                   {"create"},
	"netlink_audit_socket":          {"create"},
	"netlink_netfilter_socket":      {"create"},
	"netlink_xfrm_socket":           {"create"},
	"netlink_kobject_uevent_socket": {"create"},
	"netlink_generic_socket":        {"create"},
	"netlink_crypto_socket":         {"create"},
	"packet_socket":                 {"create:not pghardend_pgpool_t"},
	"filesystem":                    {"mount", "remount"},
}

func neverQuestions(t *testing.T, policy string) []question {
	t.Helper()
	classes := run(t, "seinfo", "-c", "-x", policy)
	var all []question
	for class, perms := range never {
		if !regexp.MustCompile(`(?m)^\s*class ` + class + `$`).MatchString(classes) {
			continue // A class that this policy lacks cannot be granted by it.
		}
		for _, perm := range perms {
			perm, except, _ := strings.Cut(perm, ":not ")
			for _, source := range confined {
				q := question{source: source, class: class, perm: perm}
				switch {
				case except == pgpool && source == pgpool:
					q.want = []string{pgpool + " if pghardend_pgpool_vip"}
				case except != "" && except != pgpool:
					q.want = []string{except}
				}
				all = append(all, q)
			}
		}
	}
	return all
}

// A rule is one line of sesearch: classes and permissions as they are there, the target with its condition.
type rule struct {
	class, target string
	perms         []string
}

var ruleLine = regexp.MustCompile(`^allow \S+ (\S+):(\S+) (?:\{ ([^}]*) \}|(\S+));(?: \[ (.*) \]:(\w+))?`)

// rulesOf reads all that the policy allows the domains of ours, by themselves or by an attribute. Loading a policy takes
// sesearch a second or more, so it is asked once for each domain and not for each question.
func rulesOf(t *testing.T, policy string) map[string][]rule {
	t.Helper()
	rules := make(map[string][]rule)
	for _, domain := range append([]string{agent}, confined...) {
		for line := range strings.Lines(run(t, "sesearch", "--allow", "-s", domain, policy)) {
			m := ruleLine.FindStringSubmatch(line)
			if m == nil {
				t.Fatalf("sesearch wrote %q, which is no rule", line)
			}
			r := rule{class: m[2], target: m[1], perms: strings.Fields(m[3] + m[4])}
			if m[5] != "" {
				r.target += " if " + m[5]
			}
			if m[6] == "False" {
				r.target += " is off"
			}
			rules[domain] = append(rules[domain], r)
		}
	}
	return rules
}

// ask returns what the policy allows, one target each.
func ask(rules map[string][]rule, q question) []string {
	got := []string{}
	for _, r := range rules[q.source] {
		if r.class == q.class && slices.Contains(r.perms, q.perm) {
			got = append(got, r.target)
		}
	}
	slices.Sort(got)
	return slices.Compact(got)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cannot run %s %s: %v: %s", name, strings.Join(args, " "), err, &stderr)
	}
	return string(out)
}

// policyIn is the binary policy of a store.
func policyIn(t *testing.T, dir string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "etc/selinux/default/policy/policy.*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s has no binary policy (%v, %v): run make test-selinux, or scripts/selinux.sh store", dir, found, err)
	}
	return found[0]
}

func TestPolicyAllowsWhatIsMeant(t *testing.T) {
	policy := policyIn(t, store)
	rules := rulesOf(t, policy)
	for _, q := range append(questions(), neverQuestions(t, policy)...) {
		want := append([]string{}, q.want...)
		slices.Sort(want)
		if diff := cmp.Diff(want, ask(rules, q)); diff != "" {
			t.Errorf("%s (-meant, +allowed):\n%s", q, diff)
		}
	}
}

// The positive control: every question finds one more rule in a policy that has it.
func TestQuestionsFindWhatIsThere(t *testing.T) {
	all := append(questions(), neverQuestions(t, policyIn(t, store))...)
	weak := t.TempDir()
	run(t, "cp", "-a", store+"/.", weak)
	// What neverallow rules of the base policy forbid could not be compiled otherwise.
	conf := "module-store = direct\nexpand-check = 0\n"
	if err := os.WriteFile(filepath.Join(weak, "etc/selinux/semanage.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	var added strings.Builder
	added.WriteString("(type weak_t)\n(roletype object_r weak_t)\n")
	for _, q := range all {
		added.WriteString("(allow " + q.source + " weak_t (" + q.class + " (" + q.perm + ")))\n")
	}
	module := filepath.Join(weak, "weak.cil")
	if err := os.WriteFile(module, []byte(added.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "semodule", "-p", weak, "-s", "default", "-n", "-X", "500", "-i", module)
	rules := rulesOf(t, policyIn(t, weak))
	for _, q := range all {
		if !slices.Contains(ask(rules, q), "weak_t") {
			t.Errorf("%s: the rule that was added is not found", q)
		}
	}
}

// Files, sockets and processes of one instance are out of reach for another by their categories. That holds for types
// with the attribute only, and where the policy has such a constraint on reading files at all.
func TestCategoriesBindTheConfined(t *testing.T) {
	policy := policyIn(t, store)
	members := run(t, "seinfo", "-a", "mcs_constrained_type", "-x", policy)
	for _, domain := range confined {
		if !strings.Contains(members, domain+"\n") {
			t.Errorf("%s is not mcs_constrained_type", domain)
		}
	}
	constraints := run(t, "seinfo", policy, "--constrain")
	for _, class := range []string{"file", "dir", "unix_stream_socket", "process", "shm"} {
		if !regexp.MustCompile(`(?m)mlsconstrain ` + class + ` .*h1 dom h2 or \( t1 != mcs_constrained_type`).MatchString(constraints) {
			t.Errorf("the policy does not constrain class %s by categories", class)
		}
	}
}

// The ports that are given a type are those that the flow matrix opens by itself, ssh and what others serve apart.
func TestPortsAreThoseOfTheFlows(t *testing.T) {
	flows, err := os.ReadFile("../../policies/network/flows.yaml")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`(?m)^  - \{name: (postgres|clients|pcp|watchdog|heartbeat), +proto: (\w+), +ports: \[(\d+)\]`)
	want := []string{}
	for _, m := range row.FindAllSubmatch(flows, -1) {
		want = append(want, string(m[2])+" "+string(m[3]))
	}
	ports, err := os.ReadFile("../../policies/selinux/ports")
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, m := range regexp.MustCompile(`(?m)^(tcp|udp) (\d+) \w+_port_t$`).FindAllSubmatch(ports, -1) {
		got = append(got, string(m[1])+" "+string(m[2]))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ports (-flows.yaml, +ports):\n%s", diff)
	}
}

// Tests of machines compile the module side by side: none may see half of another's.
func TestModuleIsCompiledSideBySide(t *testing.T) {
	var group errgroup.Group
	for range 20 {
		group.Go(func() error {
			out, err := exec.CommandContext(t.Context(), "../../scripts/selinux.sh", "module").CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}
