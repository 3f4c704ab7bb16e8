package firewall

import (
	"encoding/binary"
	"encoding/hex"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/net/bpf"
)

// Recorded on Linux 6.18, x86_64: the ends of an `iptables-nft -N`, of an `nft
// add table` and of an iptables-nft-restore.
const (
	recordedIptables = "380000000f0a0000020000008d5d00000000000208000100000000020800020000005d8d1100030069707461626c65732d6e667400000000"
	recordedNft      = "2c0000000f0a0000010000008e5d00000000000308000100000000030800020000005d8e080003006e667400"
	recordedRestore  = "380000000f0a000002000000915d00000000000408000100000000040800020000005d911400030069707461626c65732d6e66742d726500"
)

func fromHex(t testing.TB, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// littleEndian: the recorded headers are in the byte order of their host.
func littleEndian() bool { return binary.NativeEndian.Uint16([]byte{1, 0}) == 1 }

func TestParseCommit(t *testing.T) {
	if !littleEndian() {
		t.Fatal("the messages were recorded on a little-endian host; record them on this one as well")
	}
	other := fromHex(t, "14000000030a00000000000000000000"+"0200000a") // NFT_MSG_NEWCHAIN
	tests := []struct {
		name string
		data []byte
		want Commit
		ok   bool
	}{
		{"iptables", fromHex(t, recordedIptables), Commit{Generation: 2, PID: 23949, Port: 23949, Command: "iptables-nft"}, true},
		{"nft", fromHex(t, recordedNft), Commit{Generation: 3, PID: 23950, Port: 23950, Command: "nft"}, true},
		{"a name of 15 bytes", fromHex(t, recordedRestore), Commit{Generation: 4, PID: 23953, Port: 23953, Command: "iptables-nft-re"}, true},
		{"behind another message", append(other, fromHex(t, recordedNft)...), Commit{Generation: 3, PID: 23950, Port: 23950, Command: "nft"}, true},
		{"another message", other, Commit{}, false},
		{"without a committer", fromHex(t, "1c0000000f0a00000000000000000000000000050800010000000005"), Commit{Generation: 5}, true},
		{"without a generation", fromHex(t, "1c0000000f0a00000000000000000000000000050800020000000005"), Commit{}, false},
		{"empty", nil, Commit{}, false},
		{"cut", fromHex(t, recordedNft)[:30], Commit{}, false},
		{"length of nothing", make([]byte, 64), Commit{}, false},
		{"an attribute that is too short", fromHex(t, "1a0000000f0a0000000000000000000000000005060001000000"), Commit{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parseCommit(tt.data)
			if ok != tt.ok {
				t.Fatalf("%+v, %t", got, ok)
			}
			if d := cmp.Diff(tt.want, got, cmpopts.IgnoreUnexported(Commit{})); ok && d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func FuzzParseCommit(f *testing.F) {
	for _, text := range []string{recordedIptables, recordedNft, recordedRestore} {
		data := fromHex(f, text)
		f.Add(data)
		f.Add(append(data[:len(data):len(data)], data...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, ok := parseCommit(data); !ok && c != (Commit{}) {
			t.Errorf("refused, and yet %+v", c)
		}
	})
}

// The socket filter lets the end of a commit in and nothing else, so that a
// transaction of 100,000 rules is one message to us.
func TestGenerationFilter(t *testing.T) {
	raw, err := generationFilter()
	if err != nil {
		t.Fatal(err)
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("not all of the filter can be read back")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, 64)
	binary.NativeEndian.PutUint32(msg, 64)
	for typ := range 1 << 16 {
		binary.NativeEndian.PutUint16(msg[4:], uint16(typ))
		n, err := vm.Run(msg)
		if err != nil {
			t.Fatal(err)
		}
		if want := typ == 0x0a0f; (n >= len(msg)) != want {
			t.Errorf("type %#x: %d bytes pass", typ, n)
		}
	}
}

func TestOwnCommits(t *testing.T) {
	var own ownCommits
	cmd := exec.Command("/bin/true")
	if err := own.start(cmd); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	own.addPort(77)
	own.addPort(78)
	own.dropPort(77)
	now := time.Now()
	tests := []struct {
		name string
		c    Commit
		want bool
	}{
		{"ours, though it has ended", Commit{PID: pid, Port: uint32(pid), Command: "true", At: now, firstPIDs: true}, true},
		{"of another command under our pid", Commit{PID: pid, Port: uint32(pid), Command: "nft", At: now, firstPIDs: true}, false},
		{"long after", Commit{PID: pid, Port: uint32(pid), Command: "true", At: now.Add(ownFor + time.Second), firstPIDs: true}, false},
		{"another's", Commit{PID: pid + 1, Port: uint32(pid + 1), Command: "true", At: now, firstPIDs: true}, false},
		{"another's, who took a port like our pid", Commit{PID: pid + 1, Port: uint32(pid), Command: "true", At: now, firstPIDs: true}, false},
		{"ours, where pids are not the first namespace's", Commit{PID: pid + 5000, Port: uint32(pid), Command: "true", At: now}, true},
		{"nobody's", Commit{At: now}, false},
		{"of the Reflex", Commit{PID: 1, Port: 78, Command: "pghardend", At: now}, true},
		{"of a port that was the Reflex's", Commit{PID: 1, Port: 77, Command: "pghardend", At: now}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := own.has(tt.c); got != tt.want {
				t.Errorf("got %t", got)
			}
		})
	}
}

// A command that cannot be started, and one that never commits, are not
// remembered; and of many the last are.
func TestOwnCommitsForgets(t *testing.T) {
	var own ownCommits
	if err := own.start(exec.Command("/nonexistent/iptables-nft-restore")); err == nil {
		t.Fatal("started")
	}
	if own.next != 0 {
		t.Error("a command that did not start is remembered")
	}
	var first, last Commit
	for i := range ownKept + 1 {
		cmd := exec.Command("/bin/true")
		if err := own.start(cmd); err != nil {
			t.Fatal(err)
		}
		last = Commit{PID: cmd.Process.Pid, Command: "true", At: time.Now(), firstPIDs: true}
		if i == 0 {
			first = last
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	if own.has(first) || !own.has(last) {
		t.Errorf("first %t, last %t", own.has(first), own.has(last))
	}
}

func TestCommitProcess(t *testing.T) {
	tests := []struct {
		c    Commit
		want int
	}{
		{Commit{PID: 7, Port: 8, firstPIDs: true}, 7},
		{Commit{PID: 7, Port: 8}, 8},
		{Commit{Port: 8}, 0},
	}
	for _, tt := range tests {
		if got := tt.c.Process(); got != tt.want {
			t.Errorf("%+v: got %d, want %d", tt.c, got, tt.want)
		}
	}
}
