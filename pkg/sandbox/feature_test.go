package sandbox

import (
	mathbits "math/bits"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/policies"
)

// allFeatures are those of each profile.
var allFeatures = map[string][]string{"postgres": postgresFeatures, "pgpool": pgpoolFeatures, "generic": {"helpers", "jit", "open_exec", "udp"}}

// Every rule of every profile with each feature alone and with all, in somebody
// else's virtual machine and with all combinations of arguments.
func TestEveryRuleOfEveryFeature(t *testing.T) {
	for profile, features := range allFeatures {
		t.Run(profile, func(t *testing.T) {
			t.Parallel()
			everyRule(t, embeddedProfile(t, profile, features...))
			for _, f := range features {
				everyRule(t, embeddedProfile(t, profile, f))
			}
		})
	}
}

// Features compose, and prove themselves on both architectures;
// what no feature lifts stays denied.
func TestCombinationsOfFeatures(t *testing.T) {
	lifted := map[string]string{
		"io_uring_setup": "io_uring", "io_uring_enter": "io_uring", "io_uring_register": "io_uring",
		"capset": "delegate_ip trusted_servers", "setuid": "delegate_ip trusted_servers",
	}
	for profile, features := range allFeatures {
		t.Run(profile, func(t *testing.T) {
			t.Parallel()
			for bits := range 1 << len(features) {
				// Of eleven features there are thousands: up to three at once, and all or all but one.
				if n := mathbits.OnesCount(uint(bits)); n > 3 && n < len(features)-1 {
					continue
				}
				var chosen []string
				for i, f := range features {
					if bits&(1<<i) != 0 {
						chosen = append(chosen, f)
					}
				}
				p := embeddedProfile(t, profile, chosen...)
				for arch, run := range filters(t, p) {
					for _, name := range deniedWithEPERM {
						want := eperm
						if slices.ContainsFunc(strings.Fields(lifted[name]), func(f string) bool { return slices.Contains(chosen, f) }) {
							want = allow
						}
						if got := ask(t, run, machines[arch], name); got != want {
							t.Errorf("%s with %v on %s: %s: %#x, want %#x", profile, chosen, arch, name, got, want)
						}
					}
					wx := []uint64{0, 4096, unix.PROT_WRITE | unix.PROT_EXEC}
					if got := ask(t, run, machines[arch], "mprotect", wx...); got != eperm {
						t.Errorf("%s with %v on %s: mprotect write and exec: %#x", profile, chosen, arch, got)
					}
				}
			}
		})
	}
}

// What a feature gives, and that it gives it to nobody else.
func TestFeatureArguments(t *testing.T) {
	rx := uint64(unix.PROT_READ | unix.PROT_EXEC)
	tests := []struct {
		profile, feature string
		argumentTest
		without uint32
	}{
		{"postgres", "jit", argumentTest{"mprotect", []uint64{0, 4096, rx}, allow}, eperm},
		{"generic", "jit", argumentTest{"mprotect", []uint64{0, 4096, rx}, allow}, eperm},
		{"postgres", "jit", argumentTest{"mmap", []uint64{0, 4096, rx, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS}, eperm}, eperm},
		{"postgres", "huge_pages", argumentTest{"mmap", []uint64{0, 4096, unix.PROT_WRITE, unix.MAP_HUGETLB | unix.MAP_ANONYMOUS}, allow}, eperm},
		{"postgres", "huge_pages", argumentTest{"mmap", []uint64{0, 4096, rx, unix.MAP_HUGETLB | unix.MAP_ANONYMOUS}, eperm}, eperm},
		{"postgres", "huge_pages", argumentTest{"shmget", []uint64{1, 4096, 0o7600}, allow}, eperm},
		{"postgres", "io_uring", argumentTest{"io_uring_enter", nil, allow}, eperm},
		{"postgres", "pg17", argumentTest{"preadv", nil, allow}, enosys},
		{"postgres", "resolver", argumentTest{"sendmmsg", nil, allow}, enosys},
		{"postgres", "helpers", argumentTest{"setpgid", nil, allow}, enosys},
		{"postgres", "helpers", argumentTest{"ioctl", []uint64{1, unix.TCGETS}, allow}, enosys},
		{"postgres", "helpers", argumentTest{"ioctl", []uint64{1, unix.TIOCSTI}, eperm}, eperm},
		{"postgres", "helpers", argumentTest{"execve", []uint64{0x7fff12345678}, allow}, eperm},
		{"generic", "open_exec", argumentTest{"execve", []uint64{0x7fff12345678}, allow}, eperm},
		{"postgres", "udp", argumentTest{"socket", []uint64{unix.AF_INET6, unix.SOCK_DGRAM | unix.SOCK_CLOEXEC}, allow}, enosys},
		{"postgres", "udp", argumentTest{"socket", []uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, eperm}, eperm},
		{"pgpool", "udp", argumentTest{"socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP}, allow}, enosys},
		{"postgres", "pl_languages", argumentTest{"ioctl", []uint64{1, 0x5451}, allow}, enosys},
		{"pgpool", "delegate_ip", argumentTest{"socket", []uint64{unix.AF_PACKET, unix.SOCK_DGRAM}, allow}, eperm},
		{"pgpool", "delegate_ip", argumentTest{"socket", []uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, eperm}, eperm},
		{"pgpool", "trusted_servers", argumentTest{"socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, allow}, enosys},
		{"pgpool", "trusted_servers", argumentTest{"socket", []uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, eperm}, eperm},
	}
	for _, tt := range tests {
		t.Run(tt.profile+" "+tt.feature+" "+tt.call, func(t *testing.T) {
			checkArguments(t, embeddedProfile(t, tt.profile, tt.feature), []argumentTest{tt.argumentTest})
			tt.want = tt.without
			checkArguments(t, embeddedProfile(t, tt.profile), []argumentTest{tt.argumentTest})
		})
	}
}

func feature(entries ...string) string {
	return `{"description": "d", "bases": ["test"], "optIn": false, "syscalls": [` + strings.Join(entries, ",") + `]}`
}

// with adds keys to an entry.
func with(entry, keys string) string {
	return strings.TrimSuffix(entry, "}") + `, "comment": "c"` + keys + "}"
}

// Half a feature, one that contradicts, lifts nothing or is for something else is refused.
func TestF35_FeaturesThatAreRefused(t *testing.T) {
	const lifts = `, "lifts": true`
	base := []string{entry("read", "ALLOW"), entry("bpf", "ERRNO"), entry("ioctl", "ERRNO", arg("1", "EQ", "5"))}
	good := feature(with(entry("write", "ALLOW"), ""))
	tests := []struct {
		name     string
		features []string
		want     []string
	}{
		{"cut off", []string{good[:60]}, []string{"cannot read seccomp feature f0", "unexpected EOF"}},
		{"unknown key", []string{strings.Replace(good, `"optIn"`, `"optin2"`, 1)}, []string{`unknown field "optin2"`}},
		{"key in another case", []string{strings.Replace(good, `"optIn"`, `"OptIn"`, 1)}, []string{`unknown key "OptIn"`}},
		{"no content", []string{"{}"}, []string{"description, bases and syscalls"}},
		{"a default", []string{strings.Replace(good, `"optIn": false`, `"defaultAction": "SCMP_ACT_ALLOW"`, 1)}, []string{`unknown field "defaultAction"`}},
		{"no reason", []string{feature(entry("write", "ALLOW"))}, []string{"syscalls[0] (write): comment: missing"}},
		{"unknown call", []string{feature(with(entry("frobnicate", "ALLOW"), ""))}, []string{`unknown system calls: "frobnicate"`}},
		{"unknown architecture", []string{feature(with(entry("write", "ALLOW"), `, "arches": ["x86"]`))}, []string{`arches: "x86" is none that is supported: use amd64, arm64`}},
		{"for another profile", []string{strings.Replace(good, `["test"]`, `["other"]`, 1)}, []string{"feature f0: it is for other only"}},
		{"repeats the default", []string{feature(with(`{"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}`, ""))}, []string{"the same as the default of test"}},
		{"contradicts the base", []string{feature(with(entry("bpf", "ALLOW"), ""))}, []string{"bpf: an entry without args beside another one, of test and of f0"}},
		{"contradicts a condition of the base", []string{feature(with(entry("ioctl", "ALLOW", arg("1", "LE", "7")), ""))},
			[]string{"ioctl: two entries with different actions", "of test and of f0"}},
		{"contradicts another feature", []string{good, feature(with(entry("write", "ERRNO"), ""))}, []string{"write", "of f0 and of f1"}},
		{"contradicts itself", []string{feature(with(entry("write", "ALLOW"), ""), with(entry("write", "ERRNO"), ""))}, []string{"cannot use seccomp feature f0", "write"}},
		{"lifts nothing", []string{feature(with(entry("write", "ALLOW"), lifts))}, []string{"feature f0: write: it lifts what test does not say"}},
		{"lifts another condition", []string{feature(with(entry("ioctl", "ALLOW", arg("1", "EQ", "6")), lifts))}, []string{"ioctl: it lifts what test does not say"}},
		{"lifts what another feature says", []string{good, feature(with(entry("write", "ERRNO"), lifts))}, []string{"write: it lifts what test does not say"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			checkError(t, compose(t, base, tt.features), tt.want...)
		})
	}
	ok := []string{good, feature(with(entry("bpf", "ALLOW"), lifts), with(entry("ioctl", "ALLOW", arg("1", "EQ", "5")), lifts))}
	if err := compose(t, base, ok); err != nil {
		t.Errorf("good features: %v", err)
	}
	_, err := ParseProfile("test", []byte(profile(with(entry("read", "ALLOW"), lifts))))
	checkError(t, err, "lifts: a profile has nothing below it")
	p, err := ParseProfile("test", []byte(profile(base...)))
	if err != nil {
		t.Fatal(err)
	}
	f, err := ParseFeature("f", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.With(f, f)
	checkError(t, err, "feature f: twice")
}

func compose(t *testing.T, base, texts []string) error {
	t.Helper()
	p, err := ParseProfile("test", []byte(profile(base...)))
	if err != nil {
		t.Fatal(err)
	}
	var features []Feature
	for i, text := range texts {
		f, err := ParseFeature("f"+string(rune('0'+i)), []byte(text))
		if err != nil {
			return err
		}
		features = append(features, f)
	}
	_, err = p.With(features...)
	return err
}

// An entry says where it comes from, also if it comes from two; the order of
// features does not matter.
func TestEntries(t *testing.T) {
	a, b := postgresProfile(t, "helpers", "resolver", "jit"), postgresProfile(t, "jit", "resolver", "helpers")
	if d := DiffEntries(a.Entries(), b.Entries()); len(d) != 0 {
		t.Errorf("the order matters: %+v", d)
	}
	i := slices.IndexFunc(a.Entries(), func(e Entry) bool { return e.Syscall == "recvmsg" })
	want := Entry{Syscall: "recvmsg", Action: "allow", Origins: []string{"helpers", "resolver"},
		Reason: "name resolution: psql, ssh; netlink: which address families there are, samehost"}
	if d := cmp.Diff(want, a.Entries()[i]); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	changes := DiffEntries(postgresProfile(t).Entries(), postgresProfile(t, "jit").Entries())
	var got []string
	for _, c := range changes {
		got = append(got, map[bool]string{true: "+", false: "-"}[c.Added]+c.Entry.Syscall+" "+c.Entry.Action+" "+c.Entry.When)
	}
	if d := cmp.Diff([]string{"+madvise allow ", "-mprotect EPERM arg2 & 0x6 == 0x4", "+mprotect allow arg2 & 0x6 == 0x4"}, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func FuzzParseFeature(f *testing.F) {
	text, err := policies.FS.ReadFile("seccomp/features/jit.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(feature(with(entry("write", "ALLOW"), `, "lifts": true`))))
	f.Fuzz(func(t *testing.T, data []byte) {
		feature, err := ParseFeature("fuzz", data)
		if err != nil || !feature.For("postgres") || len(feature.rules) > 100 {
			return
		}
		p, err := shipped("postgres")
		if err != nil {
			t.Fatal(err)
		}
		if p, err = p.With(feature); err == nil {
			p.Entries()
		}
	})
}
