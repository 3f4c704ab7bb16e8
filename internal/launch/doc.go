// Package launch is the stage between root and a confined service: it checks,
// gives every privilege away, and becomes the program by execve, in place, with
// the same process id.
//
// # API
//
// [Check] answers without changing anything whether a [Spec] can be launched,
// and as whom. [Exec] does it and returns only on failure, with an [*Error] that
// carries the step and the process exit code. [Verify] reads from the kernel
// what one live process really is and compares it with the Spec; [Tree] lists
// the descendants of one. [Examine] does that for all processes of all services,
// finds those that descend from nothing of theirs, and looks at more: the loaded
// filters, threads, environment, open ports. [ReadLandlock] is what the launch of
// a process has probed of its Landlock domain, of which the kernel shows nothing.
//
// # Design
//
// exec.go is the only file that knows the order, and unitexec.go that of a launch
// without privileges: one that a unit has confined, and that looks whether it has. It is a straight list: first
// everything that may refuse (nothing has changed yet), then everything that
// changes the process, then execve. There is no way back in the second half: a
// step that fails ends the launch, never the confinement. What the kernel made
// of the steps is read back from /proc/thread-self/status before execve, and
// again by Verify from the process that came out of it.
//
// Credentials, capabilities, mounts, no_new_privs, Landlock and seccomp belong to a thread. Exec
// therefore ties the work to one thread, which gives everything up and calls
// execve; the kernel ends all others there and then. They stay as they are until
// that moment, so a failure can be reported whatever the limits and the filter
// forbid. Nothing of the service runs before.
//
// A failure is written to the report file as one line of JSON,
//
//	{"step":"data-dir","error":"cannot start service …","code":76}
//
// and a launch that worked writes nothing: execve closes the file, so its
// reader sees the end of it.
//
// Decisions are pure functions of what was read (an account, a stat, a status)
// and tested without root; the reading around them is kept thin.
//
// # What is trusted
//
// The configuration and the administrator are. The service's user, its files and
// its environment are not: the program, and every directory on the way to it,
// must belong to root and be writable by nobody else, which also means that
// nothing can be exchanged between Check and execve. The same holds for the
// declared helpers and for the interpreters that their first lines name.
//
// # Thread safety
//
// Check, Verify, Examine and Tree are safe for concurrent use. Exec changes the whole
// process and must be called at most once, by a program that does nothing else
// and exits if Exec returns.
//
// Linux 5.11 or newer is needed, 5.12 for mounts: CLOSE_RANGE_CLOEXEC, and Seccomp_filters in
// /proc/PID/status (5.10).
package launch
