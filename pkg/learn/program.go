package learn

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Kinds of what the kernel's side reports.
const (
	kindCall  = iota + 1 // a system call, with the arguments that matter
	kindPath             // a path that a call names, as the program spells it
	kindSock             // the address that bind or connect names
	kindTitle            // a process that is about to end: its title
	kindFork             // a new process
	kindExec             // a new program
	kindExit             // a process that has ended
)

// A report is 48 bytes, or 512 with data: no key of a kernel map may be longer.
const (
	offKind, offPID, offRun, offNumber, offDirFD = 0, 4, 8, 16, 20
	offArg0, offArg1, offArg2, offData           = 24, 32, 40, 48
	reportSize                                   = 512
	dataSize                                     = reportSize - offData
)

// Counters of what was not recorded.
const (
	lostReports   = iota // the ring buffer was full
	lostProcesses        // more processes than members has room for
	lostPaths            // a path that could not be read, or is too long
	counterCount
)

// maxNumber is beyond the highest number of a system call.
const maxNumber = 512

// Places on the stack of the programs, from the frame pointer.
const (
	stackPID    = -4
	stackWord   = -8
	stackLong   = -16
	stackRegs   = -80  // 64 bytes
	stackReport = -128 // 48 bytes
)

// kernelMaps are shared by the programs.
type kernelMaps struct {
	members  *ebpf.Map // process id → the run of a program in it, and a bit for each call it has made
	rules    *ebpf.Map // number of a call → which of its arguments matter
	once     *ebpf.Map // calls that were reported; old ones may be forgotten and are reported again
	paths    *ebpf.Map // the same for paths
	scratch  *ebpf.Map // one report for each program and CPU
	reports  *ebpf.Map
	counters *ebpf.Map
}

// ringSize is what a reader that is busy elsewhere for a tenth of a second may find: 16000 long reports, in bytes.
const ringSize = 8 << 20

func newMaps() (kernelMaps, error) {
	var m kernelMaps
	for _, s := range []struct {
		into *(*ebpf.Map)
		spec ebpf.MapSpec
	}{
		{&m.members, ebpf.MapSpec{Name: "members", Type: ebpf.Hash, KeySize: 4, ValueSize: memberSize, MaxEntries: 32768}},
		{&m.rules, ebpf.MapSpec{Name: "rules", Type: ebpf.Array, KeySize: 4, ValueSize: 32, MaxEntries: maxNumber}},
		{&m.once, ebpf.MapSpec{Name: "once", Type: ebpf.LRUHash, KeySize: offData, ValueSize: 4, MaxEntries: 32768}},
		{&m.paths, ebpf.MapSpec{Name: "paths", Type: ebpf.LRUHash, KeySize: reportSize, ValueSize: 4, MaxEntries: 8192}},
		{&m.scratch, ebpf.MapSpec{Name: "scratch", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: reportSize, MaxEntries: programCount}},
		{&m.reports, ebpf.MapSpec{Name: "reports", Type: ebpf.RingBuf, MaxEntries: ringSize}},
		{&m.counters, ebpf.MapSpec{Name: "counters", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: counterCount}},
	} {
		var err error
		if *s.into, err = ebpf.NewMap(&s.spec); err != nil {
			m.close()
			return kernelMaps{}, fmt.Errorf("cannot make the BPF map %s: %w", s.spec.Name, err)
		}
	}
	return m, nil
}

func (m kernelMaps) close() {
	for _, x := range []*ebpf.Map{m.members, m.rules, m.once, m.paths, m.scratch, m.reports, m.counters} {
		_ = x.Close() // nil is fine
	}
}

// A member is the run, then one bit for each call.
const (
	memberMoves = 8 + maxNumber/8 // how often it has changed its working directory
	memberSize  = memberMoves + 8
)

// writer puts a program together. Labels are made unique by counting.
type writer struct {
	ins    asm.Instructions
	maps   kernelMaps
	o      offsets
	labels int
	mark   string // of the next instruction
}

func (w *writer) add(list ...asm.Instruction) {
	for _, in := range list {
		if w.mark != "" {
			in = in.WithSymbol(w.mark)
			w.mark = ""
		}
		w.ins = append(w.ins, in)
	}
}

func (w *writer) label() string {
	w.labels++
	return fmt.Sprintf("l%d", w.labels)
}

// at gives the next instruction a label.
func (w *writer) at(label string) {
	if w.mark != "" { // two labels on one instruction
		w.add(asm.Mov.Reg(asm.R0, asm.R0))
	}
	w.mark = label
}

// finish is where all programs end.
func (w *writer) finish() asm.Instructions {
	w.at("exit")
	w.add(asm.Mov.Imm(asm.R0, 0), asm.Return())
	return w.ins
}

// stack puts an address on the stack into a register.
func stack(r asm.Register, offset int32) asm.Instructions {
	return asm.Instructions{asm.Mov.Reg(r, asm.RFP), asm.Add.Imm(r, offset)}
}

// store8 stores a number below 2^31 in 8 bytes; the library has no instruction for it.
func (w *writer) store8(base asm.Register, at int16, value int64) {
	w.add(asm.StoreImm(base, at, value, asm.Word), asm.StoreImm(base, at+4, 0, asm.Word))
}

// lookup leaves a pointer to the value in R0, or goes to missing.
func (w *writer) lookup(m *ebpf.Map, key int32, missing string) {
	w.add(asm.LoadMapPtr(asm.R1, m.FD()))
	w.add(stack(asm.R2, key)...)
	w.add(asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, missing))
}

// current leaves the pid of the calling process on the stack.
func (w *writer) current() {
	w.add(asm.FnGetCurrentPidTgid.Call(), asm.RSh.Imm(asm.R0, 32), asm.StoreMem(asm.RFP, stackPID, asm.R0, asm.Word))
}

// count adds one to a counter. It uses R0 to R2.
func (w *writer) count(counter int32) {
	missing := w.label()
	w.add(asm.StoreImm(asm.RFP, stackWord, int64(counter), asm.Word))
	w.lookup(w.maps.counters, stackWord, missing)
	w.add(asm.Mov.Imm(asm.R1, 1), asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0))
	w.at(missing)
}

// output sends a report that R9 points to, or the one on the stack if R9 is not it.
func (w *writer) output(size int32, onStack bool) {
	sent := w.label()
	w.add(asm.LoadMapPtr(asm.R1, w.maps.reports.FD()), asm.Mov.Reg(asm.R2, asm.R9))
	if onStack {
		w.add(stack(asm.R2, stackReport)...)
	}
	w.add(asm.Mov.Imm(asm.R3, size), asm.Mov.Imm(asm.R4, 0), asm.FnRingbufOutput.Call(), asm.JEq.Imm(asm.R0, 0, sent))
	w.count(lostReports)
	w.at(sent)
}

// header starts a report in base+at, of the run that a register holds.
func (w *writer) header(base asm.Register, at int16, kind int64, run asm.Register, number int64) {
	w.add(
		asm.StoreMem(base, at+offRun, run, asm.DWord),
		asm.StoreImm(base, at+offKind, kind, asm.Word),
		asm.LoadMem(asm.R1, asm.RFP, stackPID, asm.Word),
		asm.StoreMem(base, at+offPID, asm.R1, asm.Word),
		asm.StoreImm(base, at+offNumber, number, asm.Word),
		asm.StoreImm(base, at+offDirFD, 0, asm.Word),
	)
	for arg := at + offArg0; arg < at+offData; arg += 8 {
		w.store8(base, arg, 0)
	}
}

// useScratch leaves this program's report in R9, or ends.
func (w *writer) useScratch(program int64) {
	w.add(asm.StoreImm(asm.RFP, stackWord, program, asm.Word))
	w.lookup(w.maps.scratch, stackWord, "exit")
	w.add(asm.Mov.Reg(asm.R9, asm.R0))
}

// clearData: what is a key, or compared, must not hold what was there before.
func (w *writer) clearData(size int16) {
	for at := int16(0); at < size; at += 8 {
		w.store8(asm.R9, offData+at, 0)
	}
}

// kernelRead reads 8 bytes at R3+offset to the stack and loads them into R3; it
// goes to failed if that cannot be read.
func (w *writer) kernelRead(offset uint32, failed string) {
	w.add(asm.Add.Imm(asm.R3, int32(offset)))
	w.add(stack(asm.R1, stackLong)...)
	w.add(asm.Mov.Imm(asm.R2, 8), asm.FnProbeReadKernel.Call(), asm.JNE.Imm(asm.R0, 0, failed),
		asm.LoadMem(asm.R3, asm.RFP, stackLong, asm.DWord))
}

// newRun leaves in R8 a number that no other run of a program has: microseconds
// since boot (which lasts 50 days), and the pid in the low 22 bits. The pid is in
// a word of the stack.
func (w *writer) newRun(pid int16) {
	w.add(
		asm.FnKtimeGetNs.Call(), asm.RSh.Imm(asm.R0, 10), asm.LSh.Imm(asm.R0, 22), asm.Mov.Reg(asm.R8, asm.R0),
		asm.LoadMem(asm.R1, asm.RFP, pid, asm.Word), asm.And.Imm(asm.R1, 1<<22-1), asm.Or.Reg(asm.R8, asm.R1),
	)
}

// enroll makes the process whose pid is in a word of the stack a member with the run in R8 and no
// calls yet. The member is put together on the stack, in place of regs and report.
func (w *writer) enroll(pid int32) {
	const member = stackReport
	w.add(asm.StoreMem(asm.RFP, member, asm.R8, asm.DWord))
	for at := int16(8); at < memberSize; at += 8 {
		w.store8(asm.RFP, member+at, 0)
	}
	w.add(asm.LoadMapPtr(asm.R1, w.maps.members.FD()))
	w.add(stack(asm.R2, pid)...)
	w.add(stack(asm.R3, member)...)
	done := w.label()
	w.add(asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call(), asm.JEq.Imm(asm.R0, 0, done))
	w.count(lostProcesses)
	w.at(done)
}

// sameText goes to differs unless the data of R9 starts with text and its NUL.
func (w *writer) sameText(text, differs string) {
	padded := make([]byte, (len(text)+8)/8*8)
	copy(padded, text)
	for at := 0; at < len(padded); at += 8 {
		word := int64(binary.NativeEndian.Uint64(padded[at:])) //nolint:gosec // the same bits
		w.add(asm.LoadMem(asm.R1, asm.R9, int16(offData+at), asm.DWord), asm.LoadImm(asm.R2, word, asm.DWord),
			asm.JNE.Reg(asm.R1, asm.R2, differs))
	}
}
