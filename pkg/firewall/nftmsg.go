package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h.
const (
	nftBatchBegin = unix.NFNL_MSG_BATCH_BEGIN
	nftBatchEnd   = unix.NFNL_MSG_BATCH_END
	nftBatchGenID = unix.NFNL_BATCH_GENID
	nftSubsystem  = unix.NFNL_SUBSYS_NFTABLES
	nfgenSize     = 4 // struct nfgenmsg: family, version, resource id in network order

	nftJumpCode   = 1<<32 + unix.NFT_JUMP // verdicts as they are in a message
	nftGotoCode   = 1<<32 + unix.NFT_GOTO
	nftReturnCode = 1<<32 + unix.NFT_RETURN
	nftDropCode   = 0 // NF_DROP
	nftAcceptCode = 1 // NF_ACCEPT
)

// nftWriter writes nf_tables messages one behind the other. Its memory is used
// again.
type nftWriter struct {
	data []byte
	seq  uint32
}

func (w *nftWriter) reset() { w.data = w.data[:0] }

// message begins one and returns where; end closes it.
func (w *nftWriter) message(kind uint16, flags uint16, family uint8, resource uint16) int {
	start := len(w.data)
	w.seq++
	w.data = binary.NativeEndian.AppendUint32(w.data, 0) // the length, see end
	w.data = binary.NativeEndian.AppendUint16(w.data, kind)
	w.data = binary.NativeEndian.AppendUint16(w.data, unix.NLM_F_REQUEST|flags)
	w.data = binary.NativeEndian.AppendUint32(w.data, w.seq)
	w.data = binary.NativeEndian.AppendUint32(w.data, 0) // the port, filled in by the kernel
	w.data = append(w.data, family, 0)
	w.data = binary.BigEndian.AppendUint16(w.data, resource)
	return start
}

// command begins a message to nf_tables.
func (w *nftWriter) command(command uint16, flags uint16, family uint8) int {
	return w.message(nftSubsystem<<8|command, flags, family, 0)
}

func (w *nftWriter) end(start int) {
	binary.NativeEndian.PutUint32(w.data[start:], uint32(len(w.data)-start))
}

// attr begins an attribute and returns where; endAttr closes it.
func (w *nftWriter) attr(kind uint16) int {
	start := len(w.data)
	w.data = append(w.data, 0, 0)
	w.data = binary.NativeEndian.AppendUint16(w.data, kind)
	return start
}

func (w *nftWriter) nested(kind uint16) int { return w.attr(kind | unix.NLA_F_NESTED) }

func (w *nftWriter) endAttr(start int) {
	binary.NativeEndian.PutUint16(w.data[start:], uint16(len(w.data)-start))
	for len(w.data)%unix.NLA_ALIGNTO != 0 {
		w.data = append(w.data, 0)
	}
}

func (w *nftWriter) bytes(kind uint16, value []byte) {
	start := w.attr(kind)
	w.data = append(w.data, value...)
	w.endAttr(start)
}

func (w *nftWriter) text(kind uint16, value string) {
	start := w.attr(kind)
	w.data = append(append(w.data, value...), 0)
	w.endAttr(start)
}

func (w *nftWriter) number32(kind uint16, value uint32) {
	start := w.attr(kind)
	w.data = binary.BigEndian.AppendUint32(w.data, value)
	w.endAttr(start)
}

func (w *nftWriter) number64(kind uint16, value uint64) {
	start := w.attr(kind)
	w.data = binary.BigEndian.AppendUint64(w.data, value)
	w.endAttr(start)
}

// nftAttrs walks over a list of attributes (netlink(7)) without copying them.
//
//	for a := (nftAttrs{rest: data}); a.next(); { … a.kind, a.value … }
type nftAttrs struct {
	rest  []byte
	kind  uint16
	value []byte
}

// next is false at the end, and at what is no attribute.
func (a *nftAttrs) next() bool {
	if len(a.rest) < unix.SizeofNlAttr {
		return false
	}
	size := int(binary.NativeEndian.Uint16(a.rest))
	if size < unix.SizeofNlAttr || size > len(a.rest) {
		return false
	}
	a.kind = binary.NativeEndian.Uint16(a.rest[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
	a.value = a.rest[unix.SizeofNlAttr:size:size]
	padded := (size + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1)
	a.rest = a.rest[min(padded, len(a.rest)):]
	return true
}

// nftAttr is one attribute of a list, nil if it is not there.
func nftAttr(data []byte, kind uint16) []byte {
	for a := (nftAttrs{rest: data}); a.next(); {
		if a.kind == kind {
			return a.value
		}
	}
	return nil
}

// nftName is a text attribute without the NUL at its end.
func nftName(value []byte) []byte {
	if n := len(value); n > 0 && value[n-1] == 0 {
		return value[:n-1]
	}
	return value
}

// nftMessage is one message of the kernel's.
type nftMessage struct {
	kind     uint16
	flags    uint16
	seq      uint32
	family   uint8
	resource uint16 // of nf_tables: the generation's lower half
	body     []byte // behind the headers
}

var errNftShort = errors.New("the kernel's message is too short")

// parseNftMessage takes the first message off the data.
func parseNftMessage(data []byte) (m nftMessage, rest []byte, err error) {
	if len(data) < unix.NLMSG_HDRLEN {
		return m, nil, errNftShort
	}
	size := int(binary.NativeEndian.Uint32(data))
	if size < unix.NLMSG_HDRLEN || size > len(data) {
		return m, nil, fmt.Errorf("the kernel's message has %d bytes, with %d left", size, len(data))
	}
	m.kind = binary.NativeEndian.Uint16(data[4:])
	m.flags = binary.NativeEndian.Uint16(data[6:])
	m.seq = binary.NativeEndian.Uint32(data[8:])
	m.body = data[unix.NLMSG_HDRLEN:size:size]
	if m.kind>>8 == nftSubsystem || m.kind>>8 == unix.NFNL_SUBSYS_IPSET {
		if len(m.body) < nfgenSize {
			return m, nil, errNftShort
		}
		m.family = m.body[0]
		m.resource = binary.BigEndian.Uint16(m.body[2:])
		m.body = m.body[nfgenSize:]
	}
	padded := (size + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1)
	return m, data[min(padded, len(data)):], nil
}

// answer is what an error message or the end of a dump says: 0 for success.
func (m nftMessage) answer() (errno unix.Errno, text string) {
	if len(m.body) < 4 {
		return 0, ""
	}
	errno = unix.Errno(-int32(binary.NativeEndian.Uint32(m.body)))
	const header = 4 + unix.NLMSG_HDRLEN // NETLINK_CAP_ACK: no more than the header of what was refused
	if m.kind == unix.NLMSG_ERROR && m.flags&unix.NLM_F_ACK_TLVS != 0 && len(m.body) >= header {
		text = string(nftName(nftAttr(m.body[header:], unix.NLMSGERR_ATTR_MSG)))
	}
	return errno, text
}
