package sandbox

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const statusText = `Name:	a b:(sd)\nx
Umask:	0077
State:	S (sleeping)
Tgid:	4242
Ngid:	0
Pid:	4243
PPid:	17
TracerPid:	0
Uid:	26	27	28	29
Gid:	36	37	38	4294967295
FDSize:	256
Groups:	5 1000 
NStgid:	4242
VmPeak:	    3060 kB
SigQ:	0/96365
SigPnd:	0000000000000000
SigBlk:	fffffffe7ffb9eff
SigIgn:	0000000000001000
SigCgt:	0000000000000002
CapInh:	0000000000000001
CapPrm:	000001fffeffffff
CapEff:	0000000000003000
CapBnd:	ffffffffffffffff
CapAmb:	0000000000000000
NoNewPrivs:	1
Seccomp:	2
Seccomp_filters:	3
Speculation_Store_Bypass:	vulnerable
`

func TestParseStatus(t *testing.T) {
	got, err := ParseStatus([]byte(statusText))
	if err != nil {
		t.Fatal(err)
	}
	want := Status{
		Name: `a b:(sd)\nx`, PID: 4243, PPID: 17, TGID: 4242,
		UIDs: [4]uint32{26, 27, 28, 29}, GIDs: [4]uint32{36, 37, 38, 4294967295}, Groups: []uint32{5, 1000},
		Inh: 1, Prm: 0x1fffeffffff, Eff: 0x3000, Bnd: 0xffffffffffffffff, Amb: 0,
		NoNewPrivs: true, Seccomp: 2, Filters: 3, Umask: 0o77, SigBlk: 0xfffffffe7ffb9eff, SigIgn: 0x1000,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("ParseStatus (-want +got):\n%s", d)
	}
	none, err := ParseStatus([]byte(strings.Replace(statusText, "5 1000 \n", " \n", 1)))
	if err != nil || none.Groups != nil {
		t.Errorf("no groups: %v, %v", none.Groups, err)
	}
}

func TestParseStatusErrors(t *testing.T) {
	replace := func(old, by string) string {
		if !strings.Contains(statusText, old) {
			t.Fatalf("no %q in the text", old)
		}
		return strings.Replace(statusText, old, by, 1)
	}
	tests := []struct{ name, text, want string }{
		{"empty", "", "no CapAmb, CapBnd, CapEff"},
		{"cut off", statusText[:strings.Index(statusText, "NoNewPrivs")], "no NoNewPrivs, Seccomp, Seccomp_filters: needs Linux 5.9"},
		{"without seccomp", replace("Seccomp:", "Other:"), "no Seccomp: needs Linux"},
		{"a line twice", statusText + "Seccomp:\t0\n", "Seccomp: twice"},
		{"three uids", replace("26\t27\t28\t29", "26\t27\t28"), "Uid: want four ids"},
		{"negative uid", replace("26\t27", "-1\t27"), `Uid: "-1" is not a number`},
		{"uid of more than 32 bits", replace("26\t27", "4294967296\t27"), "Uid:"},
		{"group", replace("5 1000 ", "5 x"), `Groups: "x" is not a number`},
		{"capabilities", replace("000001fffeffffff", "1fffeffffff00000f"), "CapPrm:"},
		{"capabilities not hexadecimal", replace("000001fffeffffff", "all"), `CapPrm: "all" is not a number`},
		{"no_new_privs", replace("NoNewPrivs:\t1", "NoNewPrivs:\t2"), `NoNewPrivs: "2" is neither 0 nor 1`},
		{"seccomp", replace("Seccomp:\t2", "Seccomp:\t"), `Seccomp: "" is not a number`},
		{"umask not octal", replace("0077", "0089"), "Umask:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseStatus([]byte(tt.text))
			checkError(t, err, tt.want)
		})
	}
	_, err := ParseStatus([]byte(replace("Umask:\t0077\n", "")))
	if !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a zombie: %v, want ErrProcessDone", err)
	}
}

func TestReadStatus(t *testing.T) {
	s, err := ReadStatus(t.Context(), os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if s.TGID != os.Getpid() || s.PPID != os.Getppid() || s.UIDs[1] != uint32(os.Geteuid()) || s.GIDs[1] != uint32(os.Getegid()) {
		t.Errorf("%+v is not this process", s)
	}
	if s, err = ReadStatus(t.Context(), 0); err != nil || s.TGID != os.Getpid() {
		t.Errorf("the calling thread: %+v, %v", s, err)
	}
	if _, err := ReadStatus(t.Context(), 1<<30); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a process that is not there: %v, want ErrProcessDone", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ReadStatus(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add([]byte(statusText))
	f.Add([]byte("Uid:\t0\t0\t0\t0\nCapEff:\t"))
	if own, err := os.ReadFile("/proc/self/status"); err == nil {
		f.Add(own)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseStatus(data)
		if err == nil && (s.PID < 0 || s.Seccomp < 0 || s.Filters < 0) {
			t.Fatalf("%+v", s)
		}
	})
}
