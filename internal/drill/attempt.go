package drill

import (
	"context"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// attempt is one attack of a row of the list of faults.
type attempt struct {
	row  string // such as A36
	name string
	does string // for people

	base    []Layer // what the control keeps, since without it there is no attack
	packets bool    // it sends some, so netfilter has a say
	bounded bool    // it uses up what control groups bound, so they have a say
	fix     string  // what to set if nothing stops it
	single  string  // why one layer alone stops it, where no second one can here

	// One of the two.
	act   func(b *box) []string // the words for package act
	judge func(outcome) outcome // reads what a program said that the act has become; may be nil
	sql   func(ctx context.Context, b *box) outcome
}

// ID names an attempt: row and name.
func (a attempt) id() string { return a.row + "/" + a.name }

// Planned is an attempt as --dry-run shows it.
type Planned struct {
	Row  string `json:"row"`
	Name string `json:"name"`
	Does string `json:"does"`
}

// Attempts lists what a drill tries, in order. rows limits it to some, such as A36.
func Attempts(rows []string) []Planned {
	list := []Planned{}
	for _, a := range chosen(rows) {
		list = append(list, Planned{a.row, a.name, a.does})
	}
	return list
}

// Rows are all rows that have attempts.
func Rows() []string {
	var rows []string
	for _, a := range catalogue() {
		if !slices.Contains(rows, a.row) {
			rows = append(rows, a.row)
		}
	}
	return rows
}

func chosen(rows []string) []attempt {
	return slices.DeleteFunc(catalogue(), func(a attempt) bool { return len(rows) > 0 && !slices.Contains(rows, a.row) })
}

var asUser = []Layer{DAC}

// words makes act of constant words.
func words(w ...string) func(*box) []string { return func(*box) []string { return w } }

const (
	fixNoexec  = "set mounts.mode of the service to required"
	fixProfile = "report it: the seccomp profile lets it pass"
)

// catalogue is everything, by row.
func catalogue() []attempt {
	return slices.Concat(sqlAttempts(), commandAttempts(), programAttempts(), processAttempts(), kernelAttempts(), networkAttempts(), fileAttempts(), resourceAttempts(),
		memoryAttempts(), hostAttempts())
}

// programAttempts: A40, A41.
func programAttempts() []attempt {
	return []attempt{
		{row: "A40", name: "drop", does: "write a program into the data directory and execute it", base: asUser, fix: "landlock.mode: required",
			act: func(b *box) []string { return []string{"drop", filepath.Join(b.data, "drill-dropped"), plainProgram} }},
		{row: "A40", name: "loader", does: "have the dynamic loader run a dropped program", base: asUser, fix: fixNoexec,
			act: func(b *box) []string {
				return []string{"loader", filepath.Join(b.data, "drill-loaded"), plainProgram, b.loader}
			}},
		{row: "A40", name: "memfd", does: "execute a program from anonymous memory (memfd_create)", base: asUser, fix: fixProfile,
			act:    func(b *box) []string { return []string{"memfd", plainProgram, itoa(unix.SYS_MEMFD_CREATE)} },
			single: "a file in memory is on no mount of the service and below no path of Landlock's; SELinux, or vm.memfd_noexec=2 (Linux 6.3)"},
		{row: "A40", name: "page-0", does: "map page 0, execute a program by a path in it, as the launch stage does", fix: "set vm.mmap_min_addr to 65536",
			act: func(*box) []string { return []string{"page0", plainProgram, lowestAddress()} }},
		{row: "A41", name: "setuid", does: "execute a setuid-root program", base: asUser, fix: "this must not be possible, report it",
			act: func(b *box) []string { return []string{"become", b.file("setuid-id"), "-u"} }, judge: judgeUser},
		{row: "A41", name: "file-capabilities", does: "execute a program with file capabilities", base: asUser, fix: "this must not be possible, report it",
			act: func(b *box) []string { return []string{"become", b.file("capable-cat"), "/proc/self/status"} }, judge: judgeCapabilities},
	}
}

// processAttempts: A42, A43. The bystander is a process of the same user that is
// none of the service; the other one is root's.
func processAttempts() []attempt {
	bystander := func(act string) func(*box) []string {
		return func(b *box) []string { return []string{act, b.bystander, itoa(unix.SYS_PROCESS_VM_READV)} }
	}
	const fix = "landlock.mode: required, on Linux 6.12 or newer"
	return []attempt{
		{row: "A42", name: "ptrace", does: "trace another process of the same user", base: asUser, act: bystander("ptrace"), fix: fixProfile},
		{row: "A42", name: "process_vm_readv", does: "read the memory of another process of the same user", base: asUser, act: bystander("vm-read"), fix: fixProfile},
		{row: "A42", name: "proc-mem", does: "open /proc/PID/mem of another process of the same user for writing", base: asUser, act: bystander("proc-mem"), fix: "landlock.mode: required",
			single: "procfs is read-only where the launch mounts it and the service has no OOM score, not in a unit; else as for reading"},
		{row: "A42", name: "proc-mem-read", does: "open /proc/PID/mem of another process of the same user for reading", base: asUser, act: bystander("proc-mem-read"), fix: "landlock.mode: required",
			single: "procfs knows users only; SELinux, Yama (kernel.yama.ptrace_scope=1), or a user that nothing else runs as"},
		{row: "A43", name: "same-user", does: "signal another process of the same user (signal 0)", base: asUser, act: bystander("kill"), fix: fix,
			single: "the kernel knows users only; SELinux, or a user that nothing else runs as"},
		{row: "A43", name: "root", does: "signal a process of root (signal 0)", act: words("kill", "1"), fix: fix},
	}
}

// kernelAttempts: A44, A45, and A53 without limits.
func kernelAttempts() []attempt {
	list := []attempt{
		{row: "A44", name: "userns", does: "make a user namespace and mount a file system in it", act: words("userns"), fix: fixProfile},
		{row: "A44", name: "mount", does: "mount a file system in a mount namespace of its own", act: words("mount"), fix: fixProfile},
		{row: "A44", name: "setns", does: "enter a network namespace (its own)", act: words("setns", itoa(unix.SYS_SETNS)), fix: fixProfile},
		{row: "A44", name: "chroot", does: "change the root directory", act: words("chroot"), fix: fixProfile},
	}
	// The errors EBADF and EINVAL of the last two come after the check of permission,
	// init_module(2), kexec_load(2).
	for _, call := range []struct {
		name, does string
		words      []string
	}{
		{"bpf", "make a BPF map", []string{"bpf", itoa(unix.SYS_BPF)}},
		{"perf", "open a perf event", []string{"perf", itoa(unix.SYS_PERF_EVENT_OPEN)}},
		{"io_uring", "set up an io_uring", []string{"io_uring", itoa(unix.SYS_IO_URING_SETUP)}},
		{"keyctl", "add a key to its own keyring", []string{"keyctl", itoa(unix.SYS_ADD_KEY)}},
		{"userfaultfd", "open a userfaultfd", []string{"call", "userfaultfd", itoa(unix.SYS_USERFAULTFD), "0", itoa(unix.O_CLOEXEC)}},
		{"module", "load a kernel module (from a descriptor that is none)",
			[]string{"call", "finit_module", itoa(unix.SYS_FINIT_MODULE), itoa(int(unix.EBADF)), "-1", "0", "0"}},
		{"kexec", "load another kernel (with flags that there are not)",
			[]string{"call", "kexec_load", itoa(unix.SYS_KEXEC_LOAD), itoa(int(unix.EINVAL)), "0", "0", "0", "0x8000"}},
	} {
		list = append(list, attempt{row: "A45", name: call.name, does: call.does, act: words(call.words...), fix: fixProfile})
	}
	for _, s := range sockets {
		list = append(list, attempt{row: "A46", name: s.name, does: "open a socket: " + s.does, act: words("socket", itoa(s.family), itoa(s.kind), itoa(s.protocol)),
			fix: fixProfile, single: s.single})
	}
	list = append(list, attempt{row: "A46", name: "netfilter", does: "read the firewall's tables by netlink", act: words("netfilter"), fix: fixProfile})
	return list
}

// resourceAttempts: A51, A53.
func resourceAttempts() []attempt {
	limit := func(act, resource string) func(*box) []string {
		return func(b *box) []string { return []string{act, b.limit(resource)} }
	}
	return []attempt{
		{row: "A51", name: "processes", does: "start processes without end (128 at most)", base: asUser, act: limit("fork", "nproc"), fix: "set limits.nproc"},
		{row: "A51", name: "files", does: "open files without end (4096 at most)", base: asUser, act: limit("files", "nofile"), fix: "set limits.nofile"},
		{row: "A53", name: "tiocsti", does: "type into a terminal (a scratch one)", act: words("tiocsti"), fix: fixProfile},
		{row: "A53", name: "core", does: "allow itself to dump core", act: words("core"), fix: "set limits.core to 0"},
		{row: "A53", name: "dev-mem", does: "open the memory of the machine", act: words("open", "/dev/mem"), fix: "this must not be possible, report it"},
	}
}

// sockets are families and types that no service of ours needs.
var sockets = []struct {
	name, does             string
	family, kind, protocol int
	single                 string
}{
	{"alg", "AF_ALG, the kernel's cryptography", unix.AF_ALG, unix.SOCK_SEQPACKET, 0, anybodys},
	{"packet", "AF_PACKET, frames of the interface", unix.AF_PACKET, unix.SOCK_RAW, 0, ""},
	{"raw", "raw IPv4 (GRE)", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_GRE, ""},
	{"raw6", "raw IPv6 (ICMPv6)", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6, ""},
	{"vsock", "AF_VSOCK, to the hypervisor", unix.AF_VSOCK, unix.SOCK_STREAM, 0, anybodys},
	{"sctp", "SCTP", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP, anybodys},
}

const anybodys = "the kernel lets everybody open it, and neither Landlock nor netfilter see it; SELinux, or not to have the module"
