package learn

import (
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// The programs, each with a scratch report of its own, since one may interrupt
// another.
const (
	programEnter = iota
	programFork
	programExec
	programExit
	programReturn
	programCount
)

// Target is the service whose processes are recorded.
type Target struct {
	UID     uint32
	Program string // path, as it is executed
	// Number of a system call on this machine; false if it has none of that name.
	Number func(name string) (int, bool)
}

// programs are what the kernel runs. They look at members only, so that for
// other processes each costs a look into a hash table.
func programs(m kernelMaps, o offsets, t Target) []*ebpf.ProgramSpec {
	raw := func(name string, write func(*writer)) *ebpf.ProgramSpec {
		w := &writer{maps: m, o: o}
		w.add(asm.Mov.Reg(asm.R6, asm.R1)) // the context
		write(w)
		return &ebpf.ProgramSpec{Name: name, Type: ebpf.RawTracepoint, License: "GPL", Instructions: w.finish()}
	}
	return []*ebpf.ProgramSpec{
		programEnter:  raw("sys_enter", func(w *writer) { enterProgram(w, t) }),
		programReturn: raw("sys_exit", func(w *writer) { returnProgram(w, t) }),
		programFork:   raw("sched_process_fork", forkProgram),
		programExec:   raw("sched_process_exec", func(w *writer) { execProgram(w, t) }),
		programExit:   raw("sched_process_exit", exitProgram),
	}
}

// enterProgram is at the tracepoint sys_enter (registers, number), which comes
// after seccomp: a call that a filter denied is not seen.
func enterProgram(w *writer, t Target) {
	w.current()
	w.lookup(w.maps.members, stackPID, "exit")
	w.add(
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.LoadMem(asm.R8, asm.R6, 8, asm.DWord),
		asm.JGE.Imm(asm.R8, maxNumber, "exit"), // x32, and what is no call at all
		asm.StoreMem(asm.RFP, stackWord, asm.R8, asm.Word),
		asm.LoadMem(asm.R2, asm.R7, 0, asm.DWord),
	)
	w.header(asm.RFP, stackReport, kindCall, asm.R2, 0)
	w.add(asm.StoreMem(asm.RFP, stackReport+offNumber, asm.R8, asm.Word))
	w.lookup(w.maps.rules, stackWord, "exit")
	w.add(asm.Mov.Reg(asm.R9, asm.R0), asm.LoadMem(asm.R1, asm.R9, 24, asm.DWord), asm.JEq.Imm(asm.R1, 0, "plain"))
	withArguments(w)
	lookedAt(w, t)
	w.add(asm.Ja.Label("exit"))
	w.at("plain")
	plainCall(w)
}

// plainCall reports a call when the process makes it for the first time. Two
// threads may both be first, which costs a report.
func plainCall(w *writer) {
	w.add(
		asm.Mov.Reg(asm.R1, asm.R8), asm.RSh.Imm(asm.R1, 6), asm.LSh.Imm(asm.R1, 3),
		asm.Mov.Reg(asm.R4, asm.R7), asm.Add.Reg(asm.R4, asm.R1),
		asm.Mov.Reg(asm.R3, asm.R8), asm.And.Imm(asm.R3, 63),
		asm.Mov.Imm(asm.R2, 1), asm.LSh.Reg(asm.R2, asm.R3),
		asm.LoadMem(asm.R3, asm.R4, 8, asm.DWord), asm.Mov.Reg(asm.R5, asm.R3), asm.And.Reg(asm.R5, asm.R2),
		asm.JNE.Imm(asm.R5, 0, "exit"),
		asm.Or.Reg(asm.R3, asm.R2), asm.StoreMem(asm.R4, 8, asm.R3, asm.DWord),
	)
	w.output(offData, true)
}

// withArguments reports a call with arguments that were not seen yet.
func withArguments(w *writer) {
	w.add(stack(asm.R1, stackRegs)...)
	w.add(asm.Mov.Imm(asm.R2, 64), asm.LoadMem(asm.R3, asm.R6, 0, asm.DWord), asm.Add.Imm(asm.R3, int32(w.o.regs)),
		asm.FnProbeReadKernel.Call())
	for i := range int16(3) {
		w.add(w.argument(asm.R1, int(i)), asm.LoadMem(asm.R2, asm.R9, 8*i, asm.DWord), asm.And.Reg(asm.R1, asm.R2),
			asm.StoreMem(asm.RFP, stackReport+offArg0+8*i, asm.R1, asm.DWord))
	}
	unless := func(flag int32, next string) {
		w.add(asm.LoadMem(asm.R1, asm.R9, 24, asm.DWord), asm.And.Imm(asm.R1, flag), asm.JEq.Imm(asm.R1, 0, next),
			asm.LoadMem(asm.R1, asm.RFP, stackReport+offArg0, asm.DWord))
	}
	unless(ruleIsZero, "notbool")
	w.add(asm.JEq.Imm(asm.R1, 0, "notbool"))
	w.store8(asm.RFP, stackReport+offArg0, 1)
	w.at("notbool")
	unless(rulePrctl, "notprctl")
	w.add(asm.JEq.Imm(asm.R1, prCapAmbient, "notprctl"))
	w.store8(asm.RFP, stackReport+offArg1, 0)
	w.at("notprctl")
	w.lookup(w.maps.once, stackReport, "new")
	w.add(asm.Ja.Label("look"))
	w.at("new")
	w.remember(w.maps.once, stackReport)
	w.output(offData, true)
	w.at("look")
	w.add(asm.LoadMem(asm.R1, asm.R9, 24, asm.DWord), asm.And.Imm(asm.R1, ruleLooksAt), asm.JEq.Imm(asm.R1, 0, "exit"))
}

// remember puts a key that is on the stack into a table.
func (w *writer) remember(m *ebpf.Map, key int32) {
	w.add(asm.LoadMapPtr(asm.R1, m.FD()))
	w.add(stack(asm.R2, key)...)
	w.add(stack(asm.R3, stackPID)...)
	w.add(asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call())
}

// argument loads one of the six.
func (w *writer) argument(r asm.Register, i int) asm.Instruction {
	return asm.LoadMem(r, asm.RFP, int16(stackRegs+int32(w.o.args[i])), asm.DWord)
}

// each writes code for the call in R8 with a name.
func (w *writer) each(t Target, name string, report func(number int64)) {
	number, ok := t.Number(name)
	if !ok || number >= maxNumber {
		return
	}
	next := w.label()
	w.add(asm.JNE.Imm(asm.R8, int32(number), next))
	report(int64(number))
	w.at(next)
}

// lookedAt reads what the arguments of some calls point to.
func lookedAt(w *writer, t Target) {
	w.each(t, "bind", w.addressReport)
	w.each(t, "connect", w.addressReport)
	w.each(t, "exit_group", func(number int64) {
		w.memberReport(programEnter, kindTitle, number)
		w.titleOf()
		w.output(reportSize, false)
	})
}

// memberReport starts a report of the member in R7.
func (w *writer) memberReport(program, kind, number int64) {
	w.useScratch(program)
	w.add(asm.LoadMem(asm.R2, asm.R7, 0, asm.DWord))
	w.header(asm.R9, 0, kind, asm.R2, number)
	w.store8(asm.R9, offData, 0)
}

// returnProgram is at sys_exit (registers, result), where paths are read: the
// kernel has just read them too, so that they are in memory, and the result tells
// calls that failed for lack of a file from those that count.
func returnProgram(w *writer, t Target) {
	w.current()
	w.lookup(w.maps.members, stackPID, "exit")
	w.add(asm.Mov.Reg(asm.R7, asm.R0), asm.LoadMem(asm.R1, asm.R6, 8, asm.DWord),
		asm.JSGE.Imm(asm.R1, 0, "counts"), asm.JEq.Imm(asm.R1, -int32(unix.EACCES), "counts"), asm.JNE.Imm(asm.R1, -int32(unix.EPERM), "exit"))
	w.at("counts")
	w.add(asm.LoadMem(asm.R3, asm.R6, 0, asm.DWord))
	w.kernelRead(w.o.number, "exit")
	w.add(asm.LSh.Imm(asm.R3, 32), asm.RSh.Imm(asm.R3, 32), asm.Mov.Reg(asm.R8, asm.R3), asm.JGE.Imm(asm.R8, maxNumber, "exit"),
		asm.StoreMem(asm.RFP, stackWord, asm.R8, asm.Word))
	w.lookup(w.maps.rules, stackWord, "exit")
	w.add(asm.LoadMem(asm.R1, asm.R0, 24, asm.DWord), asm.And.Imm(asm.R1, ruleLooksAt), asm.JEq.Imm(asm.R1, 0, "exit"))
	w.add(stack(asm.R1, stackRegs)...)
	w.add(asm.Mov.Imm(asm.R2, 64), asm.LoadMem(asm.R3, asm.R6, 0, asm.DWord), asm.Add.Imm(asm.R3, int32(w.o.regs)), asm.FnProbeReadKernel.Call())
	w.add(asm.LoadMem(asm.R3, asm.R6, 0, asm.DWord))
	w.kernelRead(w.o.firstArg, "exit") // on arm64 the result is where it was
	w.add(asm.StoreMem(asm.RFP, int16(stackRegs+int32(w.o.args[0])), asm.R3, asm.DWord))
	for _, name := range slices.Sorted(maps.Keys(pathCalls)) {
		w.each(t, name, func(number int64) {
			for i, arg := range pathCalls[name] {
				w.pathReport(number, int64(i), arg)
			}
			w.add(asm.Ja.Label("exit"))
		})
	}
	w.each(t, "fchdir", func(number int64) {
		w.moved()
		w.memberReport(programReturn, kindPath, number)
		w.output(reportSize, false)
	})
}

// moved counts how often a process has changed its working directory, which
// gives relative paths another meaning.
func (w *writer) moved() {
	w.add(asm.LoadMem(asm.R1, asm.R7, memberMoves, asm.DWord), asm.Add.Imm(asm.R1, 1), asm.StoreMem(asm.R7, memberMoves, asm.R1, asm.DWord))
}

// pathReport reports a path that was not seen yet. One that is relative to a
// descriptor may mean something else each time.
func (w *writer) pathReport(number, index int64, arg pathArg) {
	read, send, end := w.label(), w.label(), w.label()
	if arg.access == moves {
		w.moved()
	}
	w.memberReport(programReturn, kindPath, number)
	w.clearData(dataSize)
	w.store8(asm.R9, offArg0, index)
	w.add(asm.StoreImm(asm.R9, offDirFD, unix.AT_FDCWD, asm.Word))
	if arg.dirFD >= 0 {
		w.add(w.argument(asm.R1, arg.dirFD), asm.StoreMem(asm.R9, offDirFD, asm.R1, asm.Word))
	}
	w.openMode(arg)
	w.add(asm.LoadMem(asm.R1, asm.R7, memberMoves, asm.DWord), asm.StoreMem(asm.R9, offArg2, asm.R1, asm.DWord))
	w.add(asm.Mov.Reg(asm.R1, asm.R9), asm.Add.Imm(asm.R1, offData), asm.Mov.Imm(asm.R2, dataSize),
		w.argument(asm.R3, arg.path), asm.FnProbeReadUserStr.Call(),
		asm.JSLE.Imm(asm.R0, 0, read), asm.JSLT.Imm(asm.R0, dataSize, send))
	w.at(read)
	w.count(lostPaths)
	w.add(asm.Ja.Label(end))
	w.at(send)
	if arg.dirFD < 0 {
		w.unlessSeen(end)
	} else {
		relative := w.label()
		w.add(asm.LoadMem(asm.R1, asm.R9, offDirFD, asm.Word), asm.LoadImm(asm.R2, 1<<32+unix.AT_FDCWD, asm.DWord), asm.JNE.Reg(asm.R1, asm.R2, relative))
		w.unlessSeen(end)
		w.at(relative)
	}
	w.output(reportSize, false)
	w.at(end)
}

// unlessSeen goes to seen if the report in R9 was sent before, as far as is remembered.
func (w *writer) unlessSeen(seen string) {
	w.add(asm.LoadMapPtr(asm.R1, w.maps.paths.FD()), asm.Mov.Reg(asm.R2, asm.R9), asm.FnMapLookupElem.Call(), asm.JNE.Imm(asm.R0, 0, seen),
		asm.LoadMapPtr(asm.R1, w.maps.paths.FD()), asm.Mov.Reg(asm.R2, asm.R9))
	w.add(stack(asm.R3, stackPID)...)
	w.add(asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call())
}

// openMode leaves the flags of open(2) in the report.
func (w *writer) openMode(arg pathArg) {
	switch {
	case arg.flags == inStruct: // struct open_how begins with them, openat2(2)
		w.store8(asm.RFP, stackLong, 0)
		w.add(stack(asm.R1, stackLong)...)
		w.add(asm.Mov.Imm(asm.R2, 8), w.argument(asm.R3, 2), asm.FnProbeReadUser.Call(), asm.LoadMem(asm.R1, asm.RFP, stackLong, asm.DWord))
	case arg.flags > 0:
		w.add(w.argument(asm.R1, arg.flags))
	default:
		return
	}
	w.add(asm.And.Imm(asm.R1, openFlags), asm.StoreMem(asm.R9, offArg1, asm.R1, asm.DWord))
}

// openFlags are those that say what a file is opened for.
const openFlags = unix.O_ACCMODE | unix.O_CREAT | unix.O_TRUNC | oPath

// oPath is O_PATH, which reads nothing.
const oPath = 0o10000000

// maxAddress is that of struct sockaddr_storage.
const maxAddress = 128

func (w *writer) addressReport(number int64) {
	fits, end := w.label(), w.label()
	w.memberReport(programEnter, kindSock, number)
	w.add(
		w.argument(asm.R2, 2), asm.JGE.Imm(asm.R2, maxAddress, end), asm.JLE.Imm(asm.R2, 2, end),
		asm.StoreMem(asm.R9, offArg0, asm.R2, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R9), asm.Add.Imm(asm.R1, offData), w.argument(asm.R3, 1), asm.FnProbeReadUser.Call(),
		asm.JEq.Imm(asm.R0, 0, fits),
	)
	w.count(lostPaths)
	w.add(asm.Ja.Label(end))
	w.at(fits)
	w.output(reportSize, false)
	w.at(end)
}

// titleOf reads the first string of the process's command line, which PostgreSQL
// and pgpool overwrite with their titles, into the data of R9. It stays empty if
// that cannot be read.
func (w *writer) titleOf() {
	none := w.label()
	w.add(asm.FnGetCurrentTask.Call(), asm.Mov.Reg(asm.R3, asm.R0))
	w.kernelRead(w.o.taskMM, none)
	w.add(asm.JEq.Imm(asm.R3, 0, none))
	w.kernelRead(w.o.argStart, none)
	w.add(asm.Mov.Reg(asm.R1, asm.R9), asm.Add.Imm(asm.R1, offData), asm.Mov.Imm(asm.R2, dataSize), asm.FnProbeReadUserStr.Call())
	w.at(none)
}

// forkProgram is at sched_process_fork (parent, child), before the child runs.
func forkProgram(w *writer) {
	w.current()
	w.lookup(w.maps.members, stackPID, "exit")
	w.add(asm.LoadMem(asm.R7, asm.R0, 0, asm.DWord)) // the parent's run
	w.add(asm.LoadMem(asm.R3, asm.R6, 8, asm.DWord))
	w.kernelRead(w.o.taskTGID, "exit")
	w.add(asm.Mov.Reg(asm.R8, asm.R3), asm.LSh.Imm(asm.R8, 32), asm.RSh.Imm(asm.R8, 32))
	w.add(asm.LoadMem(asm.R3, asm.R6, 8, asm.DWord))
	w.kernelRead(w.o.taskPID, "exit")
	w.add(asm.LSh.Imm(asm.R3, 32), asm.RSh.Imm(asm.R3, 32),
		asm.JNE.Reg(asm.R3, asm.R8, "exit"), // a thread
		asm.StoreMem(asm.RFP, stackPID, asm.R8, asm.Word))
	w.newRun(stackPID)
	w.enroll(stackPID)
	w.useScratch(programFork)
	w.header(asm.R9, 0, kindFork, asm.R8, 0)
	w.add(asm.StoreMem(asm.R9, offArg0, asm.R7, asm.DWord))
	w.output(offData, false)
}

// execProgram is at sched_process_exec (task, former pid, binprm), when the new
// program is in place and has not run. The service's own program makes a process
// a member if it is run by its user; whether it is this service or another one
// with the same program is for the reader to say, by the command line.
func execProgram(w *writer, t Target) {
	w.current()
	w.add(asm.Mov.Imm(asm.R7, 0))
	w.lookup(w.maps.members, stackPID, "stranger")
	w.add(asm.LoadMem(asm.R7, asm.R0, 0, asm.DWord)) // the former run
	w.at("stranger")
	w.useScratch(programExec)
	size := (len(t.Program) + 8) / 8 * 8
	w.clearData(int16(min(size, dataSize)))
	w.add(asm.LoadMem(asm.R3, asm.R6, 16, asm.DWord))
	w.kernelRead(w.o.bprmFilename, "exit")
	w.add(asm.Mov.Reg(asm.R1, asm.R9), asm.Add.Imm(asm.R1, offData), asm.Mov.Imm(asm.R2, dataSize), asm.FnProbeReadKernelStr.Call())
	w.add(asm.JNE.Imm(asm.R7, 0, "member"), asm.FnGetCurrentUidGid.Call(),
		asm.LSh.Imm(asm.R0, 32), asm.RSh.Imm(asm.R0, 32), asm.LoadImm(asm.R1, int64(t.UID), asm.DWord), asm.JNE.Reg(asm.R0, asm.R1, "exit"))
	if len(t.Program) >= dataSize {
		w.add(asm.Ja.Label("exit"))
	} else {
		w.sameText(t.Program, "exit")
	}
	w.at("member")
	w.newRun(stackPID)
	w.enroll(stackPID)
	w.header(asm.R9, 0, kindExec, asm.R8, 0)
	w.add(asm.StoreMem(asm.R9, offArg0, asm.R7, asm.DWord))
	// A member's report says what is executed, a newcomer's its command line.
	w.add(asm.JNE.Imm(asm.R7, 0, "send"))
	w.commandLine()
	w.at("send")
	w.output(reportSize, false)
}

// commandLine reads as much of the current one as fits, arguments ended by NUL.
func (w *writer) commandLine() {
	none, fits := w.label(), w.label()
	w.store8(asm.R9, offData, 0)
	w.add(asm.FnGetCurrentTask.Call(), asm.Mov.Reg(asm.R3, asm.R0))
	w.kernelRead(w.o.taskMM, none)
	w.add(asm.JEq.Imm(asm.R3, 0, none), asm.Mov.Reg(asm.R6, asm.R3))
	w.kernelRead(w.o.argEnd, none)
	w.add(asm.Mov.Reg(asm.R7, asm.R3), asm.Mov.Reg(asm.R3, asm.R6))
	w.kernelRead(w.o.argStart, none)
	w.add(
		asm.Sub.Reg(asm.R7, asm.R3), asm.JLE.Imm(asm.R7, dataSize, fits), asm.Mov.Imm(asm.R7, dataSize))
	w.at(fits)
	w.add(asm.JEq.Imm(asm.R7, 0, none), asm.Mov.Reg(asm.R2, asm.R7),
		asm.StoreMem(asm.R9, offArg1, asm.R2, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R9), asm.Add.Imm(asm.R1, offData), asm.FnProbeReadUser.Call())
	w.at(none)
}

// exitProgram is at sched_process_exit (task), once for each thread. A process
// has ended when no thread is left. Before Linux 6.16 its memory is gone by
// then, and the title of one that was killed is not known.
func exitProgram(w *writer) {
	w.current()
	w.lookup(w.maps.members, stackPID, "exit")
	w.add(asm.Mov.Reg(asm.R7, asm.R0), asm.FnGetCurrentTask.Call(), asm.Mov.Reg(asm.R3, asm.R0))
	w.kernelRead(w.o.taskSignal, "exit")
	w.kernelRead(w.o.signalLive, "exit")
	w.add(asm.LSh.Imm(asm.R3, 32), asm.JNE.Imm(asm.R3, 0, "exit"))
	w.memberReport(programExit, kindExit, 0)
	w.titleOf()
	w.add(asm.LoadMapPtr(asm.R1, w.maps.members.FD()))
	w.add(stack(asm.R2, stackPID)...)
	w.add(asm.FnMapDeleteElem.Call())
	w.output(reportSize, false)
}
