// Package supervise owns the life of one confined service: it adopts a running
// one or starts it, waits until it is ready, watches it, starts it again with
// back-off when it crashed, and stops it when asked.
//
// # API
//
// [New] takes a [Spec] and returns a [Supervisor]. [Supervisor.Run] is the life
// itself and ends only with its context; [Supervisor.Start] and [Supervisor.Stop]
// are requests to it; [Supervisor.Status] is a snapshot and [Supervisor.Changed]
// says when a new one is worth taking. [Gate] is the child's side of the start
// protocol below; the program that links this package must route its hidden
// subcommand [GateCommand] to it.
//
// # Invariants
//
//  1. The daemon's death costs the service nothing: it runs in its own session,
//     its stdout and stderr are files and never pipes to the daemon, and no
//     parent-death signal is set. When Run's context ends the process is left alone.
//  2. There is never a second process for one service, and none that nobody adopts.
//  3. A process is signalled only through a pidfd opened before its identity was
//     checked, so a recycled PID is never hit. SIGKILL is never sent.
//  4. What is not provably ours is reported ("failed") and not touched.
//
// # Start protocol
//
// The daemon may be killed between any two instructions. So the record of a
// process is on disk before the process may become the service:
//
//	daemon                                   child
//	------                                   -----
//	fork and exec "pghardend gate ARGV…"     blocks in read(4)
//	pidfd_open, read /proc/PID/stat
//	write the record (temp file, rename)
//	write one byte to the pipe               reads the byte, closes 4
//	                                         execve ARGV: the launch stage (same PID)
//	                                         execve the service (same PID)
//
// If the daemon dies before it wrote the byte, the pipe's only write end closes,
// the child reads end-of-file and exits without having become anything: nothing
// to adopt, and the next daemon may start at once even if that child still lives
// for a millisecond. If it dies after, the record names the child: the next daemon
// finds it, whatever stage it has reached (PID and start time survive execve), and
// waits for it rather than starting another. There is no third case.
//
// File descriptors of the child: 0 is /dev/null, 1 and 2 the log, 3 the write end
// of the report pipe, 4 the read end of the gate (closed before ARGV runs). The
// launch stage must set close-on-exec on 3: end-of-file without data means that
// the execve happened; a JSON line {"step","error","code"} says why it did not.
// The environment is PATH, LANG, LC_*, TZ and nothing else.
//
// # Adoption
//
// The record holds PID, start time (field 22 of /proc/PID/stat, clock ticks since
// boot), boot id, executable (device, inode, path) and data directory. Adoption
// opens a pidfd first, then compares boot id and start time, which together
// identify a process exactly; then /proc/PID/exe (a binary replaced by an upgrade
// shows as "PATH (deleted)" and is still the one recorded); and for postgres that
// line 1 of DataDir/postmaster.pid names this process and line 2 this directory,
// that its uid is the directory's owner and its cwd the directory. After the last
// read the pidfd must still be alive, so all facts are of one process.
//
// When the record is lost (runtime directory wiped, or it could not be written),
// postmaster.pid alone leads to the process and all the other checks apply. The
// last interlock is postgres' own: it refuses a directory whose postmaster lives.
// A postmaster that fails a check, or that Spec.Verify rejects, is left alone:
// state failed, until [Supervisor.Start] asks to look again. A service without a
// data directory has only its record, so it is not started while the record
// cannot be written.
//
// # Ends
//
// A non-zero exit or a signal is a crash: back-off 100 ms to 30 s with jitter,
// for ever, reset after 60 s of ready. Exit 0 is another hand's clean stop: stopped,
// not started again. The exit status of an adopted process is read through its
// pidfd (PIDFD_GET_INFO, Linux 6.15). On older kernels a postmaster that removed
// its postmaster.pid and left pg_control in a shut-down state was stopped by
// another hand; everything else counts as a crash.
//
// A stop is written into the record before the first signal, so a daemon that
// takes over neither forgets half a shutdown nor starts what an operator stopped.
// It is forgotten with the boot, or by Start.
//
// # Thread safety
//
// All exported methods are safe for concurrent use. One goroutine, the one in Run,
// owns the state; requests reach it over a channel and Status is one atomic load.
// The logger must not block (invariant: nothing waits for the journal).
//
// Kernel: 5.10 (PIDFD_NONBLOCK). To supervise a process of another user the daemon
// needs CAP_KILL, CAP_SYS_PTRACE (/proc/PID/exe, /proc/PID/cwd) and
// CAP_DAC_READ_SEARCH (DataDir). Sources: pidfd_open(2), proc_pid_stat(5), and
// PostgreSQL's miscadmin.h and pidfile.h for postmaster.pid.
package supervise
