package firewall

import (
	"encoding/binary"

	"golang.org/x/net/bpf"
)

// generationFilter lets only the message through that ends a commit. A restart
// of docker or a blocklist of 100,000 members is a message for each rule and
// element before it, which would fill the socket and wake us for nothing. The
// instructions before it may drop more, but nothing may be cut short: listeners
// share the message.
func generationFilter(before ...bpf.Instruction) ([]bpf.RawInstruction, error) {
	// The type is in the host's byte order, and the filter loads in the network's.
	var wire [2]byte
	binary.NativeEndian.PutUint16(wire[:], msgNewGeneration)
	return bpf.Assemble(append(before,
		bpf.LoadAbsolute{Off: 4, Size: 2}, // nlmsg_type
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(binary.BigEndian.Uint16(wire[:])), SkipFalse: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	))
}

// onCPU drops what is sent from another CPU, or from this one: the filter runs in
// the sender's time.
func onCPU(cpu uint32, here bool) []bpf.Instruction {
	cond := bpf.JumpEqual
	if !here {
		cond = bpf.JumpNotEqual
	}
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtCPUID},
		bpf.JumpIf{Cond: cond, Val: cpu, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
}
