// Package sysctl keeps the kernel's network settings, /proc/sys/net, as they
// should be.
//
// # API
//
// The pure half needs no root and does no I/O:
//
//	Parse         text in the form of sysctl.d(5) → []Setting
//	ParseSetting  one key=value                   → Setting
//	ParseKey      one key or pattern              → the same, spelled one way
//	Merge         built-in, configured, left alone → []Setting
//	Diff          []Setting, Observed             → Plan
//
// Observe reads what the kernel has, Apply writes what the Plan says and reads
// it back. Both look at the network namespace of the calling thread, which is
// whose /proc/sys/net it sees (proc_sys(5), net/sysctl_net.c).
//
// A Peeker is the cheap question whether there is anything to observe: it keeps
// the files open that were found when all was right, and is asked each second.
//
// # Design
//
// A key is spelled as sysctl.d(5) does it: with dots, and a slash where the name
// of an interface holds a dot (net.ipv4.conf.eth0/100.rp_filter). A * stands for
// any part of one component; other signs of glob(7) are refused. Interfaces come
// and go, so patterns are expanded at each Observe, and what appeared since the
// last one is drift. A key that is named wins over patterns that match it, in
// whatever order they stand; else the last one wins.
//
// Only keys below net are taken. All others belong to the machine and not to a
// network namespace, and there is no reason here to change one.
//
// Values are compared as the kernel prints them: words with one space between,
// whole numbers in decimal.
//
// A write to conf/default changes more than its name says: in IPv4 the kernel
// copies it to interfaces that have had no address yet and whose own value was
// never written (net/ipv4/devinet.c, devinet_copy_dflt_conf). Apply puts those
// values back, so that a key that is to be left alone is; for a moment the
// interface has the new one.
//
// A key that the kernel lacks does not keep the others from being set. It stays
// in the Plan, and Apply says what is wrong with it.
//
// # Thread safety
//
// Values are immutable once returned. Observe and Apply start no goroutines and
// so stay on a thread that the caller has locked; Apply must have a single caller
// at a time, which is the reconcile loop.
package sysctl
