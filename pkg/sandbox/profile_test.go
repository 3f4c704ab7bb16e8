package sandbox

import (
	"strings"
	"testing"

	"github.com/pghardend/pghardend/policies"
)

// profile wraps entries into a profile that denies by default with ENOSYS.
func profile(entries ...string) string {
	return `{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [` + strings.Join(entries, ",") + `]}`
}

// entry is one entry of a profile for name; args is the text of its conditions.
func entry(name, action string, args ...string) string {
	e := `{"names": ["` + name + `"], "action": "SCMP_ACT_` + action + `"`
	if len(args) > 0 {
		e += `, "args": [` + strings.Join(args, ",") + `]`
	}
	return e + "}"
}

func arg(index, op, value string) string {
	return `{"index": ` + index + `, "op": "SCMP_CMP_` + op + `", "value": ` + value + `}`
}

func masked(index, mask, value string) string {
	return `{"index": ` + index + `, "op": "SCMP_CMP_MASKED_EQ", "value": ` + mask + `, "valueTwo": ` + value + `}`
}

func TestParseProfileErrors(t *testing.T) {
	ok := entry("read", "ALLOW")
	tests := []struct {
		name, text string
		want       []string
	}{
		{"empty", "", []string{"cannot read seccomp profile test"}},
		{"not JSON", "seccomp", []string{"at byte"}},
		{"not an object", "[]", []string{"cannot unmarshal array"}},
		{"no content", "{}", []string{"defaultAction: unknown action", "syscalls: no entry"}},
		{"no entries", profile(), []string{"syscalls: no entry"}},
		{"cut off", profile(ok)[:80], []string{"unexpected EOF"}},
		{"text after it", profile(ok) + "{}", []string{"more text after the profile"}},
		{"unknown key", `{"defaultAction": "SCMP_ACT_ERRNO", "comment": "x"}`, []string{`unknown field "comment"`}},
		{"unknown key in an entry", profile(`{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {}}`),
			[]string{`unknown field "includes"`}},
		{"key in another case", profile(`{"Names": ["read"], "action": "SCMP_ACT_ALLOW"}`), []string{`unknown key "Names"`}},
		{"key twice", profile(`{"names": ["read"], "names": ["write"], "action": "SCMP_ACT_ALLOW"}`),
			[]string{`key "names" twice`}},
		{"key twice behind brackets and quotes in a text", profile(`{"names": ["read"], "comment": "\"}, {[\\", "names": ["write"], "action": "SCMP_ACT_ALLOW"}`),
			[]string{`key "names" twice`}},
		{"key in escapes", profile(`{"n\u0061mes": ["read"], "action": "SCMP_ACT_ALLOW"}`), []string{`unknown key "n\\u0061mes"`}},
		{"default allows", strings.Replace(profile(ok), `"SCMP_ACT_ERRNO", "defaultErrnoRet": 38`, `"SCMP_ACT_ALLOW"`, 1),
			[]string{"defaultAction SCMP_ACT_ALLOW allows what is not listed"}},
		{"default logs", strings.Replace(profile(ok), `"SCMP_ACT_ERRNO", "defaultErrnoRet": 38`, `"SCMP_ACT_LOG"`, 1),
			[]string{"defaultAction SCMP_ACT_LOG allows what is not listed"}},
		{"errno without error action", strings.Replace(profile(ok), `"SCMP_ACT_ERRNO"`, `"SCMP_ACT_KILL"`, 1),
			[]string{"defaultAction: an errno has no meaning with SCMP_ACT_KILL"}},
		{"errno that means success", profile(`{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}`),
			[]string{"syscalls[0] (read): action: errno 0 is not within 1..4094"}},
		{"errno too large", profile(`{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4095}`),
			[]string{"errno 4095 is not within 1..4094"}},
		{"tracer", profile(entry("read", "TRACE")), []string{"SCMP_ACT_TRACE needs a process that answers"}},
		{"listener", profile(entry("read", "NOTIFY")), []string{"SCMP_ACT_NOTIFY needs a process that answers"}},
		{"unknown action", profile(entry("read", "PERMIT")), []string{`unknown action "SCMP_ACT_PERMIT"`}},
		{"repeats the default", profile(`{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}`),
			[]string{"the same as defaultAction"}},
		{"no names", profile(`{"names": [], "action": "SCMP_ACT_ALLOW"}`), []string{"names: none"}},
		{"architectures", strings.Replace(profile(ok), `"syscalls"`, `"architectures": ["SCMP_ARCH_X86"], "syscalls"`, 1),
			[]string{"architectures [SCMP_ARCH_X86]", "remove the key"}},
		{"flags", strings.Replace(profile(ok), `"syscalls"`, `"flags": ["SECCOMP_FILTER_FLAG_LOG"], "syscalls"`, 1),
			[]string{"flags [SECCOMP_FILTER_FLAG_LOG]: not supported"}},
		{"listener path", strings.Replace(profile(ok), `"syscalls"`, `"listenerPath": "/x", "syscalls"`, 1),
			[]string{"listenerPath"}},
		{"unknown op", profile(entry("read", "ALLOW", arg("0", "LIKE", "1"))), []string{`args[0]: unknown op "SCMP_CMP_LIKE"`}},
		{"seventh argument", profile(entry("read", "ALLOW", arg("6", "EQ", "1"))), []string{"index 6 is not within 0..5"}},
		{"negative value", profile(entry("read", "ALLOW", arg("0", "EQ", "-1"))), []string{"cannot unmarshal number -1"}},
		{"value of more than 64 bits", profile(entry("read", "ALLOW", arg("0", "EQ", "18446744073709551616"))),
			[]string{"cannot unmarshal number"}},
		{"valueTwo without a mask", profile(entry("read", "ALLOW", `{"index": 0, "op": "SCMP_CMP_EQ", "value": 1, "valueTwo": 2}`)),
			[]string{"valueTwo has no meaning with SCMP_CMP_EQ"}},
		{"masked value outside the mask", profile(entry("read", "ALLOW", masked("0", "6", "8"))),
			[]string{"no argument can meet this condition"}},
		{"below zero", profile(entry("read", "ALLOW", arg("0", "LT", "0"))), []string{"no argument can meet"}},
		{"above all", profile(entry("read", "ALLOW", arg("0", "GT", "18446744073709551615"))), []string{"no argument can meet"}},
		{"at least zero", profile(entry("read", "ALLOW", arg("0", "GE", "0"))), []string{"every argument meets"}},
		{"no mask", profile(entry("read", "ALLOW", masked("0", "0", "0"))), []string{"every argument meets"}},
		{"range beside another condition", profile(entry("read", "ALLOW", arg("0", "EQ", "1"), arg("1", "GE", "5"))),
			[]string{"args[1]: beside other conditions"}},
		{"not equal beside another condition", profile(entry("read", "ALLOW", arg("1", "NE", "5"), arg("0", "EQ", "1"))),
			[]string{"args[0]: beside other conditions"}},
		{"two conditions on one argument", profile(entry("read", "ALLOW", arg("0", "GE", "1"), arg("0", "LE", "5"))),
			[]string{"args[1]: a second condition on argument 0"}},
		{"call listed twice", profile(ok, ok), []string{"read: an entry without args beside another one"}},
		{"call listed twice in one entry", profile(`{"names": ["read", "read"], "action": "SCMP_ACT_ALLOW"}`),
			[]string{"read: an entry without args beside another one"}},
		{"allowed and denied", profile(ok, entry("read", "ERRNO")), []string{"read: an entry without args beside another one"}},
		{"condition beside none", profile(ok, entry("read", "ERRNO", arg("0", "EQ", "1"))), []string{"beside another one"}},
		{"contradiction", profile(entry("read", "ALLOW", arg("0", "GE", "5")), entry("read", "ERRNO", arg("0", "LE", "5"))),
			[]string{"read: two entries with different actions for the same arguments"}},
		{"contradiction on different arguments",
			profile(entry("read", "ALLOW", arg("0", "EQ", "1")), entry("read", "ERRNO", arg("1", "EQ", "1"))),
			[]string{"read: two entries with different actions"}},
		{"all problems together", profile(entry("read", "PERMIT"), `{"names": [], "action": "SCMP_ACT_ALLOW"}`),
			[]string{"syscalls[0]", "syscalls[1]"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseProfile("test", []byte(tt.text))
			checkError(t, err, tt.want...)
		})
	}
}

func TestF29_UnknownSyscallNamesAreListed(t *testing.T) {
	_, err := ParseProfile("mine", []byte(profile(entry("raed", "ALLOW"), entry("read", "ALLOW"), entry("", "ALLOW"),
		entry(`wri\u0000te`, "ALLOW"), `{"names": ["opne", "opne", "READ"], "action": "SCMP_ACT_ERRNO"}`)))
	checkError(t, err, "seccomp profile mine",
		`unknown system calls: "", "READ", "opne", "raed", "wri\x00te": correct the spelling`)
}

// A name of another architecture is not a mistake: one profile serves several.
func TestNamesOfOtherArchitecturesArePassedOver(t *testing.T) {
	p, err := ParseProfile("test", []byte(profile(entry("socketcall", "ALLOW"), entry("breakpoint", "ALLOW"), entry("read", "ALLOW"))))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Compile(p); err != nil {
		t.Fatal(err)
	}
	p, err = ParseProfile("test", []byte(profile(entry("socketcall", "ALLOW"))))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Compile(p)
	checkError(t, err, "none of its system calls exists")
}

func FuzzParseProfile(f *testing.F) {
	shipped, err := policies.FS.ReadFile("seccomp/postgres.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(shipped)
	f.Add([]byte(profile(entry("read", "ALLOW"))))
	f.Add([]byte(profile(entry("read", "ALLOW", arg("0", "NE", "1")), entry("read", "ERRNO", arg("0", "EQ", "1")))))
	f.Add([]byte(profile(entry("read", "ALLOW", masked("0", "255", "1")), entry("read", "KILL", arg("0", "LT", "1")))))
	f.Add([]byte(profile(entry("read", "ALLOW", arg("0", "GT", "4294967295")), entry("write", "ALLOW", arg("1", "LE", "7")))))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseProfile("fuzz", data)
		if err != nil {
			return
		}
		// What was accepted compiles and proves itself, or is refused; it does not
		// hang. A large one would only make the fuzzer slow.
		if len(p.rules) > 500 {
			return
		}
		f, err := Compile(p)
		if err != nil {
			return
		}
		if _, err := f.Instructions(); err != nil {
			t.Fatal(err)
		}
	})
}

// checkError expects an error with all parts in its text.
func checkError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}
