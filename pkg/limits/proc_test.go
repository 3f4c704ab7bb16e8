package limits

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const procText = `Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max file size             1                    2                    bytes     
Max data size             unlimited            unlimited            bytes     
Max stack size            8388608              unlimited            bytes     
Max core file size        0                    unlimited            bytes     
Max resident set          unlimited            unlimited            bytes     
Max processes             96365                96366                processes 
Max open files            1024                 18446744073709551614 files     
Max locked memory         8388608              8388608              bytes     
Max address space         unlimited            unlimited            bytes     
Max file locks            unlimited            unlimited            locks     
Max pending signals       96365                96365                signals   
Max msgqueue size         819200               819200               bytes     
Max nice priority         3                    4                    
Max realtime priority     0                    0                    
Max realtime timeout      unlimited            unlimited            us        
`

func TestParseProc(t *testing.T) {
	got, err := ParseProc([]byte(procText))
	if err != nil {
		t.Fatal(err)
	}
	want := all(Limit{Unlimited, Unlimited})
	want["fsize"] = Limit{1, 2}
	want["stack"] = Limit{8388608, Unlimited}
	want["core"] = Limit{0, Unlimited}
	want["nproc"] = Limit{96365, 96366}
	want["nofile"] = Limit{1024, Unlimited - 1}
	want["memlock"] = Limit{8388608, 8388608}
	want["sigpending"] = Limit{96365, 96365}
	want["msgqueue"] = Limit{819200, 819200}
	want["nice"] = Limit{3, 4}
	want["rtprio"] = Limit{}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("ParseProc (-want +got):\n%s", d)
	}
}

func TestParseProcPassesOverNewLimits(t *testing.T) {
	if _, err := ParseProc([]byte(procText + "Max shiny things          what                 ever                 x\n")); err != nil {
		t.Error(err)
	}
}

func TestParseProcErrors(t *testing.T) {
	replace := func(old, by string) string { return strings.Replace(procText, old, by, 1) }
	tests := []struct{ name, text, want string }{
		{"empty", "", `no line "Max core file size"`},
		{"a line is missing", replace("Max open files", "Max open pipes"), `no line "Max open files"`},
		{"a line twice", procText + "Max open files            1                    1                    files\n",
			"limit nofile is listed twice"},
		{"cut off", procText[:strings.Index(procText, "18446744073709551614")], "limit nofile: want soft, hard and a unit"},
		{"not a number", replace("1024", "lots"), `limit nofile: "lots" is neither a number`},
		{"negative", replace("1024", "-1"), `limit nofile: "-1" is neither a number`},
		{"too large", replace("18446744073709551614", "18446744073709551616"), "limit nofile"},
		{"too many fields", replace("files     \n", "files more\n"), "limit nofile: want soft"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseProc([]byte(tt.text))
			checkError(t, err, []string{tt.want})
		})
	}
}

func TestReadErrors(t *testing.T) {
	if _, err := Read(context.Background(), 0); err == nil {
		t.Error("pid 0 was accepted")
	}
	if _, err := Read(context.Background(), 1<<30); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a process that is not there: %v, want ErrProcessDone", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Read(ctx, os.Getpid()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func FuzzParseProc(f *testing.F) {
	f.Add([]byte(procText))
	f.Add([]byte("Max open files            1024 "))
	f.Add([]byte("Max nice priority 0 unlimited\n"))
	if own, err := os.ReadFile("/proc/" + strconv.Itoa(os.Getpid()) + "/limits"); err == nil {
		f.Add(own)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseProc(data)
		if err != nil {
			return
		}
		if len(s) != len(resources) {
			t.Fatalf("%d limits, want %d", len(s), len(resources))
		}
		if d := Diff(s, s); d != nil {
			t.Fatalf("differs from itself: %v", d)
		}
	})
}
