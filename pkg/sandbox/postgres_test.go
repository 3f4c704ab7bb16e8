package sandbox

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/policies"
)

// hot are the calls that a busy server makes all the time.
var hot = []string{
	"read", "write", "lseek", "pread64", "pwrite64", "pwritev", "recvfrom", "sendto", "sendmsg",
	"epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "futex",
}

// hotFeatures are those that features add.
var hotFeatures = []string{"preadv", "recvmsg"}

// otherSpelling has the calls that only x86-64 has, and what arm64 (and some
// programs on x86-64) use in their place.
var otherSpelling = map[string]string{
	"stat": "newfstatat", "lstat": "newfstatat",
	"access": "faccessat", "chmod": "fchmodat", "dup2": "dup3", "epoll_wait": "epoll_pwait", "mkdir": "mkdirat",
	"poll": "ppoll", "readlink": "readlinkat", "rename": "renameat", "rmdir": "unlinkat", "symlink": "symlinkat",
	"unlink": "unlinkat", "vfork": "clone", "arch_prctl": "", "alarm": "setitimer", "getpgrp": "getpgid", "pause": "ppoll", "select": "pselect6",
}

// deniedWithEPERM is what a compromised server would try first.
var deniedWithEPERM = []string{
	"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp",
	"mount", "umount2", "move_mount", "open_tree", "fsopen", "fsmount", "fsconfig", "fspick", "mount_setattr",
	"pivot_root", "chroot", "unshare", "setns",
	"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
	"keyctl", "add_key", "request_key",
	"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff",
	"setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "capset",
	"fchown", "fchownat", "mknodat", "execveat", "memfd_create", "open_by_handle_at", "name_to_handle_at",
	"acct", "quotactl", "syslog", "vhangup", "nfsservctl", "sethostname", "setdomainname",
	"settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "fanotify_init", "fanotify_mark",
}

// fallBack are calls that glibc or coreutils try first and do without on ENOSYS.
var fallBack = []string{"clone3", "faccessat2", "openat2", "statx", "close_range", "renameat2", "epoll_pwait2"}

func postgresProfile(t testing.TB, features ...string) Profile {
	return embeddedProfile(t, "postgres", features...)
}

func embeddedProfile(t testing.TB, name string, features ...string) Profile {
	t.Helper()
	p, err := shipped(name, features...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// shipped is a built-in profile with features.
func shipped(name string, features ...string) (Profile, error) {
	data, err := policies.FS.ReadFile("seccomp/" + name + ".json")
	if err != nil {
		return Profile{}, err
	}
	p, err := ParseProfile(name, data)
	if err != nil {
		return Profile{}, err
	}
	var add []Feature
	for _, name := range features {
		data, err := policies.FS.ReadFile("seccomp/features/" + name + ".json")
		if err != nil {
			return Profile{}, err
		}
		f, err := ParseFeature(name, data)
		if err != nil {
			return Profile{}, err
		}
		add = append(add, f)
	}
	return p.With(add...)
}

// filters has the profile compiled for every architecture.
func filters(t *testing.T, p Profile) map[string]program {
	t.Helper()
	runs := map[string]program{}
	for name, m := range machines {
		f, err := compileFor(p, m)
		if err != nil {
			t.Fatal(err)
		}
		runs[name] = runner(t, f)
	}
	return runs
}

// Every rule, on both architectures, against all combinations of arguments
// around the edges of its conditions. Compile does the same; this test does not
// rely on it.
func TestPostgresEveryRule(t *testing.T) { everyRule(t, postgresProfile(t)) }

func everyRule(t *testing.T, p Profile) {
	t.Helper()
	for name, run := range filters(t, p) {
		m := machines[name]
		byNumber, err := rulesByNumber(p, m)
		if err != nil {
			t.Fatal(err)
		}
		calls, conditional := 0, 0
		for nr, rules := range byNumber {
			tries, err := probes(rules)
			if err != nil {
				t.Fatal(err)
			}
			if len(rules[0].conds) > 0 {
				conditional++
			}
			met := make([]bool, len(rules))
			for _, args := range tries {
				calls++
				got, err := run.verdict(m.audit, nr, args)
				if err != nil {
					t.Fatal(err)
				}
				want := enosys
				for i, r := range rules {
					if matches(r, args) {
						met[i], want = true, returnValue(r.action)
					}
				}
				if got != want {
					t.Fatalf("%s: %s%#x gives %#x, want %#x", name, rules[0].syscall, args, got, want)
				}
			}
			if slices.Contains(met, false) {
				t.Errorf("%s: not every rule on %s was met by a call: %v", name, rules[0].syscall, met)
			}
		}
		t.Logf("%s: %d calls on %d system calls, %d of them with conditions", name, calls, len(byNumber), conditional)
	}
}

func TestPostgresNames(t *testing.T) {
	checkNames(t, postgresProfile(t), hot, budget)
	checkNames(t, postgresProfile(t, postgresFeatures...), slices.Concat(hot, hotFeatures), budgetFeatures)
}

// checkNames checks what a profile allows: no contradictions, every name exists
// somewhere and what arm64 lacks has its other spelling there, hot calls have no
// conditions, every entry has its reason, and the number of names on x86-64 is
// within its budget.
func checkNames(t *testing.T, p Profile, hot []string, budget int) {
	t.Helper()
	allowed := map[string][]string{}
	for arch := range machines {
		names, err := p.Allowed(arch)
		if err != nil {
			t.Fatal(err)
		}
		allowed[arch] = names
	}
	unconditional := map[string]bool{}
	for _, r := range p.rules {
		if len(r.conds) == 0 && r.action == seccomp.ActAllow {
			unconditional[r.syscall] = true
		}
		if r.reason == "" || len(r.origins) == 0 {
			t.Errorf("%s: an entry without a reason, or without an origin %v", r.syscall, r.origins)
		}
		if m := machines["amd64"]; !exists(t, r.syscall, m) && !exists(t, r.syscall, machines["arm64"]) {
			t.Errorf("%s exists neither on x86-64 nor on arm64", r.syscall)
		}
	}
	for _, name := range allowed["amd64"] {
		other, known := otherSpelling[name]
		if !exists(t, name, machines["arm64"]) && !known {
			t.Errorf("%s does not exist on arm64: what takes its place there?", name)
		}
		if other != "" && !slices.Contains(allowed["arm64"], other) {
			t.Errorf("%s is allowed on x86-64, but not %s on arm64, which is its other spelling", name, other)
		}
	}
	for _, name := range hot {
		if !unconditional[name] {
			t.Errorf("%s is hot: it must be allowed without conditions", name)
		}
	}
	t.Logf("%s with %v: %d names on x86-64, %d on arm64", p.name, p.features, len(allowed["amd64"]), len(allowed["arm64"]))
	if n := len(allowed["amd64"]); n > budget {
		t.Errorf("%s with %v allows %d names, the budget is %d: take one out, or make a feature of it: %s",
			p.name, p.features, n, budget, strings.Join(allowed["amd64"], " "))
	}
}

func exists(t *testing.T, name string, m machine) bool {
	t.Helper()
	_, ok, err := number(name, m)
	if err != nil {
		t.Error(err)
	}
	return ok
}

// The number of names that the profile of postgres may allow on x86-64: PostgreSQL 15
// without features, and with all of them.
const (
	budget         = 90
	budgetFeatures = 132
)

// postgresFeatures are all.
var postgresFeatures = []string{"helpers", "huge_pages", "io_uring", "jit", "old_glibc", "open_exec", "origin", "pg17", "pl_languages", "resolver", "udp"}

func TestPostgresDenials(t *testing.T) { checkDenials(t, postgresProfile(t)) }

func checkDenials(t *testing.T, p Profile) {
	t.Helper()
	for arch, run := range filters(t, p) {
		for _, name := range deniedWithEPERM {
			if got := ask(t, run, machines[arch], name); got != eperm {
				t.Errorf("%s: %s: %#x, want EPERM", arch, name, got)
			}
		}
		for _, name := range fallBack {
			if got := ask(t, run, machines[arch], name); got != enosys {
				t.Errorf("%s: %s: %#x, want ENOSYS", arch, name, got)
			}
		}
	}
}

func TestPostgresArguments(t *testing.T) {
	const upper = 1 << 32 // a bit that a call with 32-bit arguments does not see
	rw, rx, rwx := uint64(unix.PROT_READ|unix.PROT_WRITE), uint64(unix.PROT_READ|unix.PROT_EXEC), uint64(unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC)
	checkArguments(t, postgresProfile(t), []argumentTest{
		{"socket", []uint64{unix.AF_UNIX, unix.SOCK_DGRAM | unix.SOCK_CLOEXEC}, allow},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM}, allow},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK, unix.IPPROTO_TCP}, allow},
		{"socket", []uint64{unix.AF_INET6, unix.SOCK_DGRAM | unix.SOCK_CLOEXEC, unix.IPPROTO_UDP}, enosys},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM}, enosys},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_SEQPACKET}, enosys},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW | unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE}, allow},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, eperm},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC}, eperm},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, eperm},
		{"socket", []uint64{unix.AF_INET6, unix.SOCK_RAW | unix.SOCK_CLOEXEC, unix.IPPROTO_RAW}, eperm},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, enosys},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, enosys},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, enosys},
		{"socket", []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET}, eperm},
		{"socket", []uint64{unix.AF_PACKET, unix.SOCK_RAW}, eperm},
		{"socket", []uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, eperm},
		{"socket", []uint64{unix.AF_ALG | upper, unix.SOCK_SEQPACKET}, eperm},
		{"clone", []uint64{uint64(unix.SIGCHLD) | unix.CLONE_CHILD_CLEARTID | unix.CLONE_CHILD_SETTID}, allow},
		{"clone", []uint64{unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_SIGHAND | unix.CLONE_FS | unix.CLONE_FILES}, allow},
		{"clone", []uint64{unix.CLONE_NEWUSER | uint64(unix.SIGCHLD)}, eperm},
		{"clone", []uint64{unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS}, eperm},
		{"clone", []uint64{unix.CLONE_NEWPID | upper}, eperm},
		{"ioctl", []uint64{1, unix.TCGETS}, enosys},
		{"ioctl", []uint64{0, unix.TIOCSTI}, eperm},
		{"ioctl", []uint64{0, unix.TIOCSTI | upper}, eperm},
		{"ioctl", []uint64{0, unix.TIOCLINUX}, eperm},
		{"ioctl", []uint64{0, unix.TIOCLINUX | 1<<63}, eperm},
		{"ioctl", []uint64{0, unix.FS_IOC_SETFLAGS}, enosys},
		{"mmap", []uint64{0, 4096, rw}, allow},
		{"mmap", []uint64{0, 4096, rx, unix.MAP_PRIVATE | unix.MAP_DENYWRITE}, allow},
		{"mmap", []uint64{0, 4096, rx, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS}, eperm},
		{"mmap", []uint64{0, 4096, rw, unix.MAP_SHARED | unix.MAP_ANONYMOUS | unix.MAP_HUGETLB}, eperm},
		{"mmap", []uint64{0, 4096, rwx}, eperm},
		{"mprotect", []uint64{0, 4096, rx}, eperm},
		{"shmget", []uint64{1, 4096, 0o3600}, allow},
		{"shmget", []uint64{1, 4096, 0o7600}, eperm}, // SHM_HUGETLB
		{"fcntl", []uint64{3, unix.F_SETFL, unix.O_NONBLOCK}, allow},
		{"fcntl", []uint64{3, unix.F_DUPFD_CLOEXEC}, allow},
		{"fcntl", []uint64{3, unix.F_SETOWN, 1}, enosys},
		{"fcntl", []uint64{3, unix.F_ADD_SEALS}, enosys},
		{"mprotect", []uint64{0, 4096, rwx | upper}, eperm},
		{"mprotect", []uint64{0, 4096, unix.PROT_NONE}, allow},
		{"shmat", []uint64{1, 0, 0}, allow},
		{"shmat", []uint64{1, 0, 0o100000}, eperm}, // SHM_EXEC
		{"prctl", []uint64{unix.PR_SET_PDEATHSIG, uint64(unix.SIGKILL)}, allow},
		{"prctl", []uint64{unix.PR_SET_NAME}, allow},
		{"prctl", []uint64{unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET}, allow},
		{"prctl", []uint64{unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE}, enosys},
		{"prctl", []uint64{unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER}, enosys},
		{"prctl", []uint64{unix.PR_SET_PTRACER}, enosys},
		{"prctl", []uint64{unix.PR_SET_MM}, enosys},
		{"personality", []uint64{0}, eperm}, // PER_LINUX
		{"personality", []uint64{0x0040000}, eperm},
		{"personality", []uint64{0xffffffff}, eperm},
		{"prlimit64", []uint64{0, unix.RLIMIT_NOFILE}, allow},
		{"prlimit64", []uint64{1, unix.RLIMIT_NOFILE}, eperm},
		{"execve", []uint64{16}, allow},
		{"execve", []uint64{4095}, allow},
		{"execve", []uint64{4096}, eperm},
		{"execve", []uint64{16 | upper}, eperm},
		{"execve", []uint64{0x7fff12345678}, eperm},
	})
}

type argumentTest struct {
	call string
	args []uint64
	want uint32
}

func checkArguments(t *testing.T, p Profile, tests []argumentTest) {
	t.Helper()
	for arch, run := range filters(t, p) {
		for _, tt := range tests {
			if got := ask(t, run, machines[arch], tt.call, tt.args...); got != tt.want {
				t.Errorf("%s: %s%#x: %#x, want %#x", arch, tt.call, tt.args, got, tt.want)
			}
		}
	}
}

// The kernel (5.11) runs a filter once for every number with arguments unknown.
// Where the way to ALLOW needs no argument, it never runs the filter for that
// call again; seccomp_is_const_allow in kernel/seccomp.c. Hot calls must be such.
func TestPostgresHotCallsAreCachedByTheKernel(t *testing.T) {
	checkCached(t, postgresProfile(t), hot)
	checkCached(t, postgresProfile(t, postgresFeatures...), slices.Concat(hot, hotFeatures))
}

func checkCached(t *testing.T, p Profile, hot []string) {
	t.Helper()
	f, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	m := machines[runtime.GOARCH]
	allowed, err := p.Allowed(m.name)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range hot {
		if !slices.Contains(allowed, name) {
			continue // it is arm64's, checkNames sees to that
		}
		nr, _, err := number(name, m)
		if err != nil {
			t.Fatal(err)
		}
		if err := constAllow(f.prog, m.audit, uint32(nr)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	nr, _, err := number("socket", m)
	if err != nil {
		t.Fatal(err)
	}
	if constAllow(f.prog, m.audit, uint32(nr)) == nil {
		t.Error("socket has conditions, and still its arguments are not looked at: the test is wrong")
	}
}

// constAllow follows the program as the kernel does.
func constAllow(prog []unix.SockFilter, audit, nr uint32) error {
	var acc uint32
	for pc := 0; pc < len(prog); pc++ {
		ins := prog[pc]
		jump := func(yes bool) {
			if yes {
				pc += int(ins.Jt)
			} else {
				pc += int(ins.Jf)
			}
		}
		switch ins.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			switch ins.K {
			case 0:
				acc = nr
			case 4:
				acc = audit
			default:
				return fmt.Errorf("needs the word at %d", ins.K)
			}
		case unix.BPF_RET | unix.BPF_K:
			if ins.K != allow {
				return fmt.Errorf("returns %#x", ins.K)
			}
			return nil
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(ins.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(acc == ins.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(acc >= ins.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(acc > ins.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump(acc&ins.K != 0)
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= ins.K
		default:
			return fmt.Errorf("instruction %#x, which the kernel does not follow", ins.Code)
		}
	}
	return fmt.Errorf("no return")
}

// What a launch does: parse, compose, compile, prove.
func BenchmarkCompilePostgres(b *testing.B) {
	for name, features := range map[string][]string{"base": nil, "auto": {"huge_pages", "resolver"}, "all": postgresFeatures} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Compile(postgresProfile(b, features...)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkProvePostgres(b *testing.B) {
	p, m := postgresProfile(b, postgresFeatures...), machines[runtime.GOARCH]
	prog, err := build(p, m)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := prove(p, m, prog); err != nil {
			b.Fatal(err)
		}
	}
}
