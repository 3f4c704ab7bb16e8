// Package mac confines a process by Landlock and by SELinux.
//
// By Landlock to declared files, TCP ports and partners, which needs no privilege and no
// policy of the system's. By SELinux to what the host's policy lets a domain do.
//
// # API
//
// [ParsePolicy] reads what a kind of service needs and [Policy.RuleSet] fills in
// its data directory. [RuleSet.Fault] finds what must not be granted, [Compile]
// says what a kernel of an ABI version makes of a rule set: what is handled, and
// the list of what that kernel cannot do. These are pure. [ABI] asks the kernel,
// [Plan.Open] opens the paths and makes the kernel's rule set of them,
// [Ruleset.Restrict] puts it on the calling thread, and a [Probe] tries before
// and after whether it holds.
//
// The launch stage calls, on one locked thread: ABI, Compile and Open while it
// may still refuse, then, as the service's user and after no_new_privs, NewProbe,
// Restrict, Probe.Check, execve.
//
// [HostSELinux] asks the kernel: [SELinux.LaunchLabel] whether a program would be
// confined in a domain, and why not ([LabelError]), [SELinux.Enforced] whether
// a label confines now, [SELinux.Decide] what the policy allows. [SetExecLabel] is for the launch
// stage, on the same thread. [FileLabel] and [Relabel] are for files, [LocalPorts],
// [LoadModule], [SetPort] and [RemovePermissive] for the policy store, and a
// [PolicyWatcher] hears of a new mode or policy.
//
// # Design
//
// Of SELinux nothing is decided here that the kernel can be asked: the file access of
// selinuxfs answers for the policy in force, constraints included, and says whether a
// domain is permissive (AVD_FLAGS_PERMISSIVE). Documentation: selinux(8), The SELinux
// Notebook, security/selinux/selinuxfs.c.
//
// All rights of Landlock's that the kernel knows are handled, so what no rule names is denied;
// making device nodes and FIFOs and ioctl on devices are granted to nobody. A
// right that the kernel does not know yet is not an error but is in the plan's
// list of missing features: a newer kernel enforces more of the same rules.
// [MinABI] is the least: before it the kernel denies every move of a file to
// another directory.
//
// A rule belongs to the file or directory that its path led to when it was
// opened, not to the path. So what an upgrade replaces (a helper, a shell, the
// dynamic loader) is executable again only after a restart of the service. A path
// is walked component by component; a symbolic link counts only where root alone
// could have made it. Nothing that is executable may be written to: Open compares
// the places that the paths really led to.
//
// # What Landlock cannot do
//
// Execute is the right to be opened by execve, as a program, as the interpreter of
// a script, or as the loader that an ELF program names. The loader must have it,
// or no program starts, and the kernel cannot tell why it is opened: `ld.so FILE`
// runs any ELF file that may be read. Nor is mmap with PROT_EXEC looked at, so a
// library can be loaded from wherever files may be read (LOAD in PostgreSQL). Both
// end with the mount option noexec wherever the service may write: the kernel then
// refuses to map such files as code, whoever asks. pkg/mounts sees to that. Files
// without a path (memfd) and pipes and sockets that are open already are outside
// of all rules, as are stat, chmod, chown, setxattr, utime and fcntl, UDP, raw
// sockets, and connecting to a Unix socket that has a path.
//
// Documentation: landlock(7), https://docs.kernel.org/userspace-api/landlock.html.
//
// # Thread safety
//
// Policy, RuleSet and Plan are values to read and safe for concurrent use. A
// Landlock domain belongs to a thread and what it starts: Restrict and Probe act on
// the calling thread alone, so the caller holds runtime.LockOSThread and execs
// from that thread.
package mac
