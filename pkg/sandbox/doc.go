// Package sandbox takes from a process what it does not need: system calls
// (seccomp), capabilities, and the right to gain privileges by execve
// (no_new_privs). It also reads back, from /proc, what the kernel enforces.
//
// # API
//
// [ParseProfile] reads a seccomp profile, [ParseFeature] what can be added to it
// with [Profile.With]; [Compile] makes a [Filter] of the result and [Filter.Load]
// puts it on the calling thread. [Profile.Entries] and [DiffEntries] show and
// compare profiles. [ParseCapabilities] turns names
// into a [CapSet], which [DropBounding] and [SetCapabilities] leave as all that
// a process can have. [ReadStatus] returns what the kernel says about a live
// process, and [LoadedFilters] the filters that it is under.
//
// The launch stage calls, on one locked thread and in this order: DropBounding,
// KeepCaps(true), the change of user, SetCapabilities, NoNewPrivs, Filter.Load,
// execve. Everything that can be refused (ParseProfile, With, Compile,
// ParseCapabilities) is pure and is to be called before the first of them.
//
// # Design
//
// A profile has the OCI runtime-spec format, read strictly: whatever libseccomp
// would ignore, drop or read differently than it looks is an error. Profiles
// are lists of what is allowed. A feature adds to a profile, and takes the place of
// a denial only where it says so and there is one; what contradicts is refused,
// so that the order of features does not matter. Compile lets libseccomp generate
// the program, then follows each call's way through it to see that every rule does
// what it says, and keeps nothing but the instructions. Only calls of the native
// architecture are looked at; all others (i386, x32, 32-bit Arm) kill the
// process, since nothing that this program starts makes them by mistake.
//
// Capabilities are read back after every change, over all bits the kernel has
// and not only those with a name here.
//
// # Thread safety
//
// Profile, Feature and Filter are immutable and safe for concurrent use. Capabilities,
// no_new_privs and seccomp filters belong to a thread: the functions that
// change them (Load, NoNewPrivs, KeepCaps, DropBounding, SetCapabilities) act on
// the calling thread alone, so the caller holds runtime.LockOSThread and execs
// from that thread.
package sandbox
