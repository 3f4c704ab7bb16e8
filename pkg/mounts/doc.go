// Package mounts gives a process mounts of its own, in which nothing that can be
// written to can be executed.
//
// # API
//
// [Spec] says what is executed, what is read-only, what is written to, which
// device nodes are used and what is hidden. [Resolve] finds the places that its
// paths lead to; [Layout.Enter] makes the calling thread's mount namespace of
// them and [Quiet] takes the way around it from an inherited descriptor.
// [ReadTable] reads what a process has and [Layout.Check] says, by the table
// alone, how that differs. [Own] tells whether a process has mounts of its own.
//
// # Design
//
// Nothing is allowed by being forgotten. Every mount there is becomes noexec,
// nosuid and nodev, wherever the service may or may not write. Then copies of the
// places that programs and libraries are in are put on top of themselves: these
// may be executed from, and are read-only. So each mount is either not executable
// or not writable, and a table of mounts can be judged without knowing its
// history. A device node that is used is a mount of its own, the only one
// without nodev.
//
// noexec is more than "no execve": the kernel refuses mmap(2) with PROT_EXEC of
// such a file, and mprotect(2) later, whoever asks, be it the dynamic loader run
// as a program or dlopen(3). Memory without a file is out of its reach.
//
// Copies are taken before anything is changed, and flags are only ever added: what
// the host mounts with noexec below /usr stays so.
//
// Mounts are slaves of the host's: what the host mounts or unmounts later does so
// here as well, if the host's mounts are shared, as systemd has them. A mount
// that arrives that way has the flags that it has there; Check finds it. The kernel has no way
// to have them arrive with others, and private mounts are no way out: a disk for a tablespace
// that the host mounts below the data directory while the server runs would not be seen, and the
// server would write beside it; what the host unmounts would stay in use here. Whoever is to gain by
// the moment until flags are added has to find something that he can write to on what arrived: that
// is below what the service writes to, where such disks belong. Nothing
// that happens here reaches the host. The kernel frees the namespace with its
// last process, so nothing is stacked and nothing has to be undone.
//
// # What it cannot do
//
// Whoever is handed a descriptor from outside can reach the outside mount through
// it (/proc/self/fd). So can who may look into a process outside of the same user
// (/proc/PID/root), which Landlock denies. Root can do what it likes.
//
// Linux 5.12 is needed: mount_setattr(2). The others are open_tree(2) and
// move_mount(2) (5.2), openat2(2) (5.6). See also mount_namespaces(7).
//
// # Thread safety
//
// Spec, Layout and Table are values to read and safe for concurrent use. Enter
// changes the calling thread alone, which must be locked and must not be given
// back: the caller becomes another program, or lets the thread end.
package mounts
