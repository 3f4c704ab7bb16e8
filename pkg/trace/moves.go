package trace

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// hookMove is where a task has been moved to another control group, by a write to cgroup.procs
// or tasks of either version (include/trace/events/cgroup.h).
const hookMove = "cgroup_attach_task"

// burstMove is as burstExec: who moves many is told of once more by the look that follows.
const burstMove = 16

// moveProgram tells of members that are moved to another control group:
// cgroup_attach_task(struct cgroup *to, const char *path, struct task_struct *, bool threadgroup).
// It is run in who moves them.
func moveProgram(m maps, l layout) *ebpf.ProgramSpec {
	body := asm.Instructions{
		asm.LoadMem(rTask, asm.R1, 16, asm.DWord),
		asm.LoadMem(asm.R1, rTask, l.tgid, asm.Word),
		asm.StoreMem(asm.RFP, stackNew, asm.R1, asm.Word),
		asm.LoadMapPtr(asm.R1, m.members),
		asm.Mov.Reg(asm.R2, rTask),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnTaskStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, end),
		asm.Mov.Reg(rMember, asm.R0),
		asm.StoreImm(asm.RFP, stackKey+4, 0, asm.Word),
		asm.StoreImm(asm.RFP, stackKey+8, 0, asm.Word),
		asm.StoreImm(asm.RFP, stackKey+12, int64(KindMove), asm.Word),
		asm.Mov.Imm(rContext, burstMove),
		asm.FnGetCurrentTaskBtf.Call(),
		asm.Mov.Reg(rTask, asm.R0),
	}
	body = append(body, count(m)...)
	body = append(body, record(m, l)...)
	body = append(body,
		asm.LoadMem(asm.R1, asm.RFP, stackNew, asm.Word),
		asm.StoreMem(rRecord, offNumber, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R1, rRecord),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRingbufSubmit.Call(),
	)
	return tracing("pgh_move", hookMove, body)
}
