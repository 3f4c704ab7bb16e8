// Package selinux asks Debian's policy, with the module of policies/selinux in it, what it allows. Nothing is loaded
// into a kernel: sesearch and seinfo read the binary policy that scripts/selinux.sh store has linked.
//
// A question is answered by the complete list of what is allowed, attributes and rules of the base policy included, and
// compared with the list that is meant. The same questions are then put to a policy that was weakened on purpose: one
// that gets the same answer there proves nothing.
package selinux
