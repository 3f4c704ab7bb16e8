// Package culprit says who a process is, or was a moment ago.
//
// # API
//
// Look reads /proc; a Culprit is a value for events and logs.
//
// # Design
//
// A command that changes rules has often ended before anybody looks. So Look
// reads what tells most first, everything is optional, and a process that took
// over the pid is not blamed: its name has to be the one that the kernel gave,
// and all is read through one directory of /proc, which stands for one process.
//
// Nothing of it is trusted. Names and arguments are the culprit's own words:
// they are cut and made printable, and its links are read but never followed.
// The arguments of commands that change rules are shown, and of no others: a
// password may stand there.
//
// # Thread safety
//
// Look may be called by several goroutines. It can be made to wait by a process
// that runs as root and makes reading its memory wait, so the loop does not call
// it itself.
package culprit
