package act

import (
	"syscall"
	"unsafe"
)

// netfilterDump asks for the tables of nf_tables: a socket alone says nothing.
func netfilterDump(arguments) outcome {
	const netfilter, getTables = 12, 10<<8 | 1 // NETLINK_NETFILTER; NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, netfilter)
	if err != nil {
		return stopped("socket", err)
	}
	ask := struct {
		header syscall.NlMsghdr
		family uint8 // struct nfgenmsg, all families
		_      [3]byte
	}{header: syscall.NlMsghdr{Type: getTables, Flags: syscall.NLM_F_REQUEST | syscall.NLM_F_DUMP, Seq: 1}}
	ask.header.Len = uint32(unsafe.Sizeof(ask))
	message := unsafe.Slice((*byte)(unsafe.Pointer(&ask)), int(unsafe.Sizeof(ask)))
	if err := syscall.Sendto(fd, message, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return stopped("sendto", err)
	}
	answer := make([]byte, 1<<16)
	n, _, err := syscall.Recvfrom(fd, answer, syscall.MSG_DONTWAIT) // the kernel answers within sendto
	if err != nil {
		return stopped("recvfrom", err)
	}
	const errorLength = 4 // struct nlmsgerr begins with the negative number
	if n < syscall.SizeofNlMsghdr+errorLength {
		return outcome{kind: Stopped, step: "recvfrom", note: "a short answer"}
	}
	if header := (*syscall.NlMsghdr)(unsafe.Pointer(&answer[0])); header.Type != syscall.NLMSG_ERROR {
		return reached
	}
	return stopped("dump", syscall.Errno(-*(*int32)(unsafe.Pointer(&answer[syscall.SizeofNlMsghdr]))))
}
