package sandbox

import seccomp "github.com/seccomp/libseccomp-golang"

// ExecBelow is the address below which the path of an execve(2) must lie for the
// profile to let it pass; 0 if it passes wherever the path is, or never.
//
// A limit of one page is a gate that only a privileged process can go through:
// mapping page 0 needs CAP_SYS_RAWIO in the first user namespace, as long as
// vm.mmap_min_addr is not 0 (mmap(2); Linux, security/commoncap.c, cap_mmap_addr).
func (p Profile) ExecBelow() uint64 {
	for _, r := range p.rules {
		if r.syscall == "execve" && r.action == seccomp.ActAllow && len(r.conds) == 1 && r.conds[0].Argument == 0 && r.conds[0].Op == seccomp.CompareLess {
			return r.conds[0].Operand1
		}
	}
	return 0
}
