package sandbox

import (
	"testing"

	"golang.org/x/sys/unix"
)

// hotPgpool are the calls that a busy pgpool makes all the time, by a trace of
// pgbench through it.
var hotPgpool = []string{
	"read", "write", "recvfrom", "sendto", "poll", "ppoll", "pselect6", "semtimedop", "futex", "fcntl", "getpid",
}

// The number of names that the profile of pgpool may allow on x86-64, without
// features and with all of them.
const (
	budgetPgpool         = 106
	budgetPgpoolFeatures = 120
)

func pgpoolProfile(t testing.TB, features ...string) Profile {
	return embeddedProfile(t, "pgpool", features...)
}

// pgpoolFeatures are all.
var pgpoolFeatures = []string{"delegate_ip", "helpers", "open_exec", "trusted_servers", "udp"}

func TestPgpoolEveryRule(t *testing.T) { everyRule(t, pgpoolProfile(t)) }

func TestPgpoolNames(t *testing.T) {
	checkNames(t, pgpoolProfile(t), hotPgpool, budgetPgpool)
	checkNames(t, pgpoolProfile(t, pgpoolFeatures...), hotPgpool, budgetPgpoolFeatures)
}

func TestPgpoolDenials(t *testing.T) { checkDenials(t, pgpoolProfile(t)) }

func TestPgpoolHotCallsAreCachedByTheKernel(t *testing.T) {
	checkCached(t, pgpoolProfile(t), hotPgpool)
}

// What postgres needs and pgpool does not is not allowed here.
func TestPgpoolHasNothingOfPostgres(t *testing.T) {
	for arch, run := range filters(t, pgpoolProfile(t)) {
		for _, name := range []string{
			"pwrite64", "preadv", "pwritev", "fallocate", "ftruncate", "truncate", "fdatasync", "sync_file_range",
			"copy_file_range", "symlinkat", "signalfd4", "epoll_create1", "epoll_ctl", "getrusage",
		} {
			if got := ask(t, run, machines[arch], name); got != enosys {
				t.Errorf("%s: %s: %#x, want ENOSYS", arch, name, got)
			}
		}
	}
}

// A child waits with pause() while a server is recovered in replication mode:
// with ENOSYS it would spin. No trace shows it, and arm64 has ppoll instead.
func TestPgpoolMayPause(t *testing.T) {
	if got := ask(t, filters(t, pgpoolProfile(t))["amd64"], machines["amd64"], "pause"); got != allow {
		t.Errorf("pause: %#x", got)
	}
}

func TestPgpoolArguments(t *testing.T) {
	const upper = 1 << 32 // a bit that a call with 32-bit arguments does not see
	rx, rwx := uint64(unix.PROT_READ|unix.PROT_EXEC), uint64(unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC)
	checkArguments(t, pgpoolProfile(t), []argumentTest{
		{"socket", []uint64{unix.AF_UNIX, unix.SOCK_STREAM}, allow},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP}, allow},
		{"socket", []uint64{unix.AF_INET6, unix.SOCK_STREAM}, allow},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM}, enosys},                         // heartbeat, the feature udp
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_DGRAM, unix.NETLINK_ROUTE}, allow},   // the watchdog watches interfaces
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, eperm}, // rules and sets
		{"socket", []uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, eperm},         // ping, first way
		{"socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, enosys},      // ping, second way
		{"socket", []uint64{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6}, enosys},   // the same
		{"socket", []uint64{unix.AF_PACKET, unix.SOCK_DGRAM}, eperm},                        // arping
		{"socket", []uint64{unix.AF_PACKET | upper, unix.SOCK_RAW}, eperm},                  // a sniffer
		{"socket", []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET}, eperm},
		{"socket", []uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, eperm},
		{"clone", []uint64{unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_SIGHAND | unix.CLONE_FS | unix.CLONE_FILES}, allow},
		{"clone", []uint64{unix.CLONE_VM | unix.CLONE_VFORK | uint64(unix.SIGCHLD)}, allow}, // system()
		{"clone", []uint64{unix.CLONE_NEWUSER | uint64(unix.SIGCHLD)}, eperm},
		{"clone", []uint64{unix.CLONE_NEWNET | upper}, eperm},
		{"ioctl", []uint64{1, unix.TCGETS}, allow},
		{"ioctl", []uint64{1, unix.SIOCGIFINDEX}, allow}, // wd_monitoring_interfaces_list
		{"ioctl", []uint64{1, unix.SIOCSIFADDR}, enosys},
		{"ioctl", []uint64{1, unix.TIOCGWINSZ}, enosys},
		{"ioctl", []uint64{0, unix.TIOCSTI}, eperm},
		{"ioctl", []uint64{0, unix.TIOCSTI | upper}, eperm},
		{"ioctl", []uint64{0, unix.TIOCLINUX | 1<<63}, eperm},
		{"mmap", []uint64{0, 4096, rx, unix.MAP_PRIVATE}, allow},
		{"mmap", []uint64{0, 4096, rx, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS}, eperm},
		{"mprotect", []uint64{0, 4096, rx}, eperm},
		{"mmap", []uint64{0, 4096, rwx}, eperm},
		{"mprotect", []uint64{0, 4096, rwx | upper}, eperm},
		{"shmat", []uint64{1, 0, 0}, allow},
		{"shmat", []uint64{1, 0, 0o100000}, eperm}, // SHM_EXEC
		{"prctl", []uint64{unix.PR_CAPBSET_READ}, allow},
		{"prctl", []uint64{unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET}, allow},
		{"prctl", []uint64{unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE}, enosys},
		{"prctl", []uint64{unix.PR_SET_KEEPCAPS, 1}, enosys},
		{"prctl", []uint64{unix.PR_SET_PDEATHSIG}, enosys},
		{"prctl", []uint64{unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER}, enosys},
		{"personality", []uint64{0}, eperm},
		{"prlimit64", []uint64{0, unix.RLIMIT_NOFILE}, allow},
		{"prlimit64", []uint64{1, unix.RLIMIT_NOFILE}, eperm},
		{"capget", nil, enosys},
		{"execve", []uint64{16}, allow},
		{"execve", []uint64{4096}, eperm},
	})
}
