// Package trace hears of what the kernel denies to the processes of services:
// system calls that a seccomp filter refused, and programs that could not be
// executed. It needs neither auditd nor auditing.
//
// # API
//
//	OpenMembers     which processes belong to which service, kept by the kernel
//	OpenDenials     programs that report what is denied to Members
//	(*Denials).Next, Counts, Lost
//
// # Design
//
// A few BPF programs sit where the kernel goes only when something is denied or
// executed, so a system call that is allowed costs nothing more. The tracepoint
// raw_syscalls/sys_exit would be the obvious place, but sends every system call
// of every process of the host through the slow path.
//
//   - audit_seccomp is called for each call that a filter refused, if the filter was
//     loaded with SECCOMP_FILTER_FLAG_LOG (kernel/seccomp.c, seccomp_log), be auditing
//     on or off. What the call returns stands in the task's registers by then.
//   - do_open_execat opens a program, the interpreter of a script, or a program's
//     loader; Landlock, modes and noexec refuse there. bprm_execve comes later, and
//     tells of those who refuse then (SELinux).
//   - sched_process_fork hands the membership on.
//
// The membership is storage that belongs to a task (BPF_MAP_TYPE_TASK_STORAGE): a
// child inherits it, whoever its parent is later, and it ends with the task. A
// pid that is used again is nobody's.
//
// The kernel counts all denials by service, call and errno, and reports some: of
// one kind at most a handful in a second. So nobody who is denied a million
// calls per second makes us do more, and the counts are complete all the same.
// While nothing is denied nothing wakes up.
//
// What is reported of an execution is the path alone, as the kernel copied it:
// arguments may hold passwords.
//
// Needed: Linux 5.15 with BTF (CONFIG_DEBUG_INFO_BTF), trampolines for the
// architecture (x86-64; arm64 from 6.4), CAP_BPF and CAP_PERFMON, and no lockdown
// for confidentiality. Otherwise the error is an [*UnsupportedError].
//
// # Thread safety
//
// Next has one caller at a time; all else may be called by several goroutines.
package trace
