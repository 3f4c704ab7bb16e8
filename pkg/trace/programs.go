package trace

import (
	"golang.org/x/sys/unix"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Tracepoints of the kernel that programs are attached to.
const (
	hookExit = "sys_exit"
	hookFork = "sched_process_fork"
	hookExec = "sched_process_exec"
)

// memberSize is that of a member's storage, which holds its service.
const memberSize = 4

// The counts' keys and values.
const (
	keySize   = 16 // service, number, errno, kind; 4 bytes each
	valueSize = 24 // count, begin of the window, reported in it; 8 bytes each
)

// What is where on a program's stack of 512 bytes, from its end.
const (
	stackKey   = -keySize
	stackValue = stackKey - valueSize
	stackPath  = stackValue - 8
	stackNew   = stackPath - 8
)

// maps are those that programs use, by descriptor.
type maps struct {
	members, counts, events, lost int
}

// Which of the losses; there is one value for all.
const (
	lostEvents  = 0 // not reported, as the ring buffer was full, nor counted, as there were too many kinds
	lostMembers = 1 // children that could not be followed
	losses      = 2
)

// Registers that calls leave alone: rContext is the program's argument, then the
// registers of the system call, then how many events there may be in a second;
// rTask the current task, rMember its storage; rRecord the count, then the event.
const (
	rContext = asm.R6
	rTask    = asm.R7
	rRecord  = asm.R8
	rMember  = asm.R9
)

const end = "end"

func tracing(name, hook string, body asm.Instructions) *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{
		Name: name, Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: hook, License: "GPL",
		Instructions: append(body, asm.Mov.Imm(asm.R0, 0).WithSymbol(end), asm.Return()),
	}
}

// forkProgram has a child belong where its parent does.
func forkProgram(members, lost int) *ebpf.ProgramSpec {
	body := asm.Instructions{
		asm.LoadMem(rTask, asm.R1, 8, asm.DWord), // the child
		asm.LoadMem(asm.R2, asm.R1, 0, asm.DWord),
		asm.LoadMapPtr(asm.R1, members),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnTaskStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, end),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
		asm.StoreMem(asm.RFP, stackNew, asm.R1, asm.Word),
	}
	body = append(body, join(members)...)
	return tracing("pgh_fork", hookFork, append(body, lose(lost, lostMembers)...))
}

// A seed is the service of a process whose threads are not all members, and when that
// was said: 4 bytes, 4 of nothing, and 8.
const (
	seedSize = 16
	seedAt   = 8
	seedFor  = 60e9 // nanoseconds, in which a launch becomes the service
)

// execProgram has a process that executes be the member that it was before: the thread
// that calls execve takes the place of the first one, whose storage is gone with it.
func execProgram(members, seeds, lost int, l layout) *ebpf.ProgramSpec {
	body := asm.Instructions{
		asm.LoadMem(rTask, asm.R1, 0, asm.DWord),
		asm.LoadMem(asm.R1, rTask, l.tgid, asm.Word),
		asm.StoreMem(asm.RFP, stackKey, asm.R1, asm.Word),
		asm.LoadMapPtr(asm.R1, seeds),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, end),
		asm.LoadMem(rRecord, asm.R0, seedAt, asm.DWord),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
		asm.StoreMem(asm.RFP, stackNew, asm.R1, asm.Word),
		asm.LoadMapPtr(asm.R1, seeds),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.FnMapDeleteElem.Call(),
		asm.FnKtimeGetNs.Call(),
		asm.Sub.Reg(asm.R0, rRecord),
		asm.LoadImm(asm.R1, seedFor, asm.DWord),
		asm.JGT.Reg(asm.R0, asm.R1, end), // the pid may be another's
	}
	body = append(body, join(members)...)
	return tracing("pgh_exec", hookExec, append(body, lose(lost, lostMembers)...))
}

// join has rTask belong to the service on the stack, which ends the program.
func join(members int) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, members),
		asm.Mov.Reg(asm.R2, rTask),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, stackNew),
		asm.Mov.Imm(asm.R4, unix.BPF_LOCAL_STORAGE_GET_F_CREATE),
		asm.FnTaskStorageGet.Call(),
		asm.JNE.Imm(asm.R0, 0, end),
	}
}

// exitProgram looks at what a system call returned, sys_exit(struct pt_regs *, long).
// It is run for each call of the host, so what is most common comes first.
func exitProgram(m maps, l layout) *ebpf.ProgramSpec {
	body := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 8, asm.DWord),
		asm.JSGE.Imm(asm.R2, 0, end),
		asm.JEq.Imm(asm.R2, -int32(unix.EPERM), "denied"),
		asm.JEq.Imm(asm.R2, -int32(unix.EACCES), "denied"),
		asm.JNE.Imm(asm.R2, -int32(unix.ENOSYS), end),
		asm.Mov.Imm(asm.R3, 0).WithSymbol("denied"),
		asm.Sub.Reg(asm.R3, asm.R2),
		asm.StoreMem(asm.RFP, stackKey+8, asm.R3, asm.Word),
	}
	body = append(body, member(m.members)...)
	body = append(body,
		asm.LoadMem(rContext, rContext, 0, asm.DWord), // the registers
		asm.LoadMem(asm.R2, rContext, l.number, asm.Word),
		asm.LoadMem(asm.R3, asm.RFP, stackKey+8, asm.Word),
	)
	if l.compat >= 0 {
		body = append(body,
			asm.LoadMem(asm.R1, rTask, l.compat, asm.Word),
			asm.And.Imm(asm.R1, 2), // TS_COMPAT, arch/x86/include/asm/thread_info.h
			asm.JNE.Imm(asm.R1, 0, "strange"),
		)
	}
	body = append(body,
		asm.JEq.Imm(asm.R3, int32(unix.ENOSYS), "call"),
		asm.JEq.Imm(asm.R2, unix.SYS_EXECVE, "execve"),
		asm.JEq.Imm(asm.R2, unix.SYS_EXECVEAT, "execveat"),
		asm.JEq.Imm(asm.R3, int32(unix.EACCES), end), // of a file; not what a filter answers
		// Before the filter is loaded nothing is denied by it.
		asm.LoadMem(asm.R1, rTask, l.seccomp, asm.Word).WithSymbol("call"),
		asm.JNE.Imm(asm.R1, unix.SECCOMP_MODE_FILTER, end),
		asm.JLE.Imm(asm.R2, maxNumber, "number"),
		asm.LoadImm(asm.R2, noNumber, asm.DWord).WithSymbol("strange"),
		asm.StoreMem(asm.RFP, stackKey+4, asm.R2, asm.Word).WithSymbol("number"),
		asm.StoreImm(asm.RFP, stackKey+12, int64(KindSyscall), asm.Word),
		asm.Mov.Imm(rContext, burstSyscall),
		asm.Mov.Imm(asm.R1, 0),
		asm.JNE.Imm(asm.R3, int32(unix.ENOSYS), "count"),
		asm.Mov.Imm(rContext, 0), // no event
		asm.Ja.Label("count"),
		asm.LoadMem(asm.R1, rContext, l.flags, asm.Word).WithSymbol("execveat"),
		asm.And.Imm(asm.R1, executeCheck),
		asm.JNE.Imm(asm.R1, 0, end),
		asm.LoadMem(asm.R1, rContext, l.second, asm.DWord),
		asm.Ja.Label("exec"),
		asm.LoadMem(asm.R1, rContext, l.first, asm.DWord).WithSymbol("execve"),
		asm.StoreImm(asm.RFP, stackKey+4, 0, asm.Word).WithSymbol("exec"),
		asm.StoreImm(asm.RFP, stackKey+12, int64(KindExec), asm.Word),
		asm.Mov.Imm(rContext, burstExec),
		asm.StoreMem(asm.RFP, stackPath, asm.R1, asm.DWord).WithSymbol("count"),
	)
	body = append(body, count(m)...)
	body = append(body, record(m, l)...)
	body = append(body,
		asm.LoadMem(asm.R3, asm.RFP, stackPath, asm.DWord),
		asm.JEq.Imm(asm.R3, 0, "submit"),
		asm.Mov.Reg(asm.R1, rRecord),
		asm.Add.Imm(asm.R1, offPath),
		asm.Mov.Imm(asm.R2, maxPath),
		asm.FnProbeReadUserStr.Call(),
		asm.Mov.Reg(asm.R1, rRecord).WithSymbol("submit"),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRingbufSubmit.Call(),
	)
	return tracing("pgh_exit", hookExit, body)
}

// executeCheck is AT_EXECVE_CHECK, Linux 6.14: a question, and no execution. The
// launch stage asks it.
const executeCheck = 0x10000

// member ends the program unless the current task belongs to a service.
func member(members int) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(rContext, asm.R1),
		asm.FnGetCurrentTaskBtf.Call(),
		asm.Mov.Reg(rTask, asm.R0),
		asm.LoadMapPtr(asm.R1, members),
		asm.Mov.Reg(asm.R2, rTask),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnTaskStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, end),
		asm.Mov.Reg(rMember, asm.R0),
	}
}

// count counts the key on the stack, and ends the program if enough of its kind
// was reported in this second.
func count(m maps) asm.Instructions {
	lookup := func(next string) asm.Instructions {
		return asm.Instructions{
			asm.LoadMapPtr(asm.R1, m.counts),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, stackKey),
			asm.FnMapLookupElem.Call(),
			asm.JNE.Imm(asm.R0, 0, next),
		}
	}
	body := asm.Instructions{
		asm.LoadMem(asm.R1, rMember, 0, asm.Word),
		asm.StoreMem(asm.RFP, stackKey, asm.R1, asm.Word),
	}
	body = append(body, lookup("found")...)
	body = append(body,
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, stackValue, asm.R1, asm.DWord),
		asm.StoreMem(asm.RFP, stackValue+8, asm.R1, asm.DWord),
		asm.StoreMem(asm.RFP, stackValue+16, asm.R1, asm.DWord),
		asm.LoadMapPtr(asm.R1, m.counts),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, stackValue),
		asm.Mov.Imm(asm.R4, unix.BPF_NOEXIST), // another CPU may have been faster
		asm.FnMapUpdateElem.Call(),
	)
	body = append(body, lookup("found")...)
	body = append(body, lose(m.lost, lostEvents)...)
	return append(body,
		asm.Ja.Label(end),
		asm.Mov.Reg(rRecord, asm.R0).WithSymbol("found"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(rRecord, asm.R1, asm.DWord, 0),
		asm.FnKtimeGetNs.Call(),
		asm.LoadMem(asm.R1, rRecord, 8, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.Sub.Reg(asm.R2, asm.R1),
		asm.JLT.Imm(asm.R2, window, "same"),
		asm.StoreMem(rRecord, 8, asm.R0, asm.DWord),
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(rRecord, 16, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, rRecord, 16, asm.DWord).WithSymbol("same"),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(rRecord, 16, asm.R1, asm.DWord),
		asm.JGT.Reg(asm.R1, rContext, end),
		asm.LoadMem(asm.R1, rRecord, 0, asm.DWord),
		asm.StoreMem(asm.RFP, stackValue, asm.R1, asm.DWord), // how many there are, for the event
	)
}

// record makes room for an event and fills in who, and what the key says.
func record(m maps, l layout) asm.Instructions {
	body := asm.Instructions{
		asm.LoadMapPtr(asm.R1, m.events),
		asm.Mov.Imm(asm.R2, eventSize),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnRingbufReserve.Call(),
		asm.JNE.Imm(asm.R0, 0, "room"),
	}
	body = append(body, lose(m.lost, lostEvents)...)
	body = append(body,
		asm.Ja.Label(end),
		asm.Mov.Reg(rRecord, asm.R0).WithSymbol("room"),
	)
	for _, f := range []struct{ from, to int16 }{{0, offService}, {4, offNumber}, {8, offErrno}, {12, offKind}} {
		body = append(body,
			asm.LoadMem(asm.R1, asm.RFP, stackKey+f.from, asm.Word),
			asm.StoreMem(rRecord, f.to, asm.R1, asm.Word),
		)
	}
	return append(body,
		asm.LoadMem(asm.R1, asm.RFP, stackValue, asm.DWord),
		asm.StoreMem(rRecord, offCount, asm.R1, asm.DWord),
		asm.StoreImm(rRecord, offPath, 0, asm.Word),
		asm.FnGetCurrentPidTgid.Call(),
		asm.RSh.Imm(asm.R0, 32),
		asm.StoreMem(rRecord, offPID, asm.R0, asm.Word),
		asm.FnGetCurrentUidGid.Call(),
		asm.StoreMem(rRecord, offUID, asm.R0, asm.Word),
		asm.Mov.Reg(asm.R1, rRecord),
		asm.Add.Imm(asm.R1, offCommand),
		asm.Mov.Imm(asm.R2, maxComm),
		asm.FnGetCurrentComm.Call(),
		asm.LoadMem(asm.R3, rTask, l.parent, asm.DWord),
		asm.LoadMem(asm.R1, asm.R3, l.tgid, asm.Word),
		asm.StoreMem(rRecord, offParent, asm.R1, asm.Word),
		asm.Add.Imm(asm.R3, int32(l.comm)),
		asm.Mov.Reg(asm.R1, rRecord),
		asm.Add.Imm(asm.R1, offOf),
		asm.Mov.Imm(asm.R2, maxComm),
		asm.FnProbeReadKernelStr.Call(),
	)
}

// lose counts a loss.
func lose(lost int, which uint32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapValue(asm.R1, lost, 8*which),
		asm.Mov.Imm(asm.R2, 1),
		asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, 0),
	}
}
