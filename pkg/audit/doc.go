// Package audit reads the three kinds of records that matter here from the
// kernel's audit stream: changes of the netfilter configuration, syscalls
// that a seccomp filter denied, and decisions of SELinux's.
//
// # API
//
//	Parse  type, text → Record     pure
//	Watch  joins the stream; (*Watcher).Next waits for a Record
//
// # Design
//
// The stream is the multicast group that the kernel has for readers beside
// auditd: nothing is taken away from auditd, and nothing of the audit system is
// changed. A socket filter lets only these kinds through, so that a host that
// audits every execve does not wake us.
//
// NETFILTER_CFG records come only while auditing is on (auditctl -s says
// enabled 1). SECCOMP records need that it was not switched off at boot
// (audit=0), and nothing more: the kernel writes them in any case (since 4.14,
// kernel/seccomp.c, seccomp_log) for actions that kill, and for an error if the
// filter was loaded with SECCOMP_FILTER_FLAG_LOG and the sysctl
// kernel.seccomp.actions_logged names errno, as it does by default.
//
// AVC records need no more than SECCOMP ones. What the policy grants makes one only
// where the policy says auditallow.
//
// The kernel sends to the first network namespace alone (kernel/audit.c,
// kauditd_send_multicast_skb): elsewhere a Watcher opens and hears nothing.
//
// A record is a line of key=value. The kernel quotes what a process chose, or
// writes it in hex, save for one: the name of an nf_tables table stands there
// as it is, and may hold anything. It is the first field, so of two fields of one
// name the last is the kernel's.
//
// # Thread safety
//
// Values are immutable once returned; see Watcher for the rest.
package audit
