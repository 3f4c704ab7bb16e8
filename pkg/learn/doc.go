// Package learn records what a service uses while it works, and turns that into
// profiles.
//
// # API
//
// [Open] attaches a [Recorder] to the kernel, a [Tracker] makes sense of its
// reports, and a [Recording] is what came of it: system calls with the arguments
// by which profiles decide, files, programs and ports, by type of process. [Parse]
// and Recording.Render are its file format, [Merge] joins two. Recording.Seccomp
// and Recording.Landlock write profiles, [Diff] compares with one.
//
// # Design
//
// Five BPF programs, put together here without a compiler, follow the processes of
// the service by fork, exec and exit, and report each call with its arguments
// once, as far as the kernel's tables remember; a busy server therefore costs a
// look into a hash table for each call, and the reader little. Neither auditd nor
// ptrace is needed: a tracer would stop the server at each call, and a seccomp
// listener cannot be put on a process that runs.
//
// sys_enter comes after seccomp, so that calls which a filter denies are not
// seen: record with mode complain to see them. Paths are read when the call
// returns and only if it did not fail for lack of a file; links are followed a moment
// later, in our own mount namespace. Calls of other ABIs (i386, x32) are not told
// apart. What does not arrive is counted, and such a recording is not complete.
//
// Recordings hold names, numbers and paths: no arguments of programs, no
// environment, no query. Of the data directory only the first level is kept.
//
// # Thread safety
//
// Functions on recordings are pure. A Recorder and its Tracker are used by one
// goroutine.
package learn
