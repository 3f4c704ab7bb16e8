// Package trace hears of what the kernel denies to the processes of services:
// system calls that a seccomp filter refused, and programs that could not be
// executed. It needs neither auditd nor auditing. Beside it, it hears of processes of
// services that are moved to another control group.
//
// # API
//
//	OpenMembers     which processes belong to which service, kept by the kernel
//	OpenDenials     programs that report what is denied to Members
//	(*Denials).Next, Counts, Lost
//
// # Design
//
// The tracepoint sys_exit is where a system call returns, those that a filter
// refused as well, which never pass sys_enter. Its program looks at the result first:
// EPERM, EACCES and ENOSYS of members are of interest, EACCES of executions
// alone. Whether a filter or the kernel itself said EPERM does not show; the caller
// knows the filter. A process that a filter kills does not get there.
//
// While the program is attached, each system call of the host takes the kernel's
// slow way out. Probes on the few functions that deny would cost nothing, but there
// are kernels that permit tracepoints and no probes.
//
// The membership is storage that belongs to a task (BPF_MAP_TYPE_TASK_STORAGE): a
// child inherits it, whoever its parent is later, and it ends with the task. A
// pid that is used again is nobody's. A thread that executes becomes the process, and
// what the first thread had is gone; sched_process_exec mends that after Follow.
//
// The kernel counts all denials by service, call and errno, and reports some: of
// one kind at most a handful in a second. So nobody who is denied a million
// calls per second makes us do more, and the counts are complete all the same.
// While nothing is denied nothing wakes up.
//
// What is reported of an execution is the path alone: arguments may hold passwords.
// It is read from the process's memory when the call has failed, and another thread may
// have changed it by then: a compromised process can name any path. That
// something was blocked, and who tried, it cannot forge.
//
// A move between control groups is an event of its own (cgroup_attach_task), with who made it.
// Files of control groups tell nobody: cgroup.procs has no notification, and cgroup.events of version 2
// changes only when a group becomes empty.
//
// Needed: Linux 5.12 with BTF (CONFIG_DEBUG_INFO_BTF), CAP_BPF and CAP_PERFMON, and
// no lockdown for confidentiality. Otherwise the error is an [*UnsupportedError].
//
// # Thread safety
//
// Next has one caller at a time; all else may be called by several goroutines.
package trace
