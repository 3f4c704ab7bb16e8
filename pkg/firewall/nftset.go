package firewall

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// linux/netfilter/ipset/ip_set.h; the library has no names for these.
const (
	ipsetByIndex    = 15 // IPSET_CMD_GET_BYINDEX, since protocol 7 (Linux 4.20)
	ipsetProtocolBy = 7
	ipsetAttrIndex  = 11 // IPSET_ATTR_INDEX
)

// lookSets asks for the names of ipsets by their numbers. One that is not there
// has none.
func (s *nftSocket) lookSets(indexes []uint16) (map[uint16]string, error) {
	if len(indexes) == 0 {
		return nil, nil
	}
	s.out.reset()
	first := s.out.seq + 1
	for _, index := range indexes {
		start := s.out.message(unix.NFNL_SUBSYS_IPSET<<8|ipsetByIndex, 0, unix.NFPROTO_IPV4, 0)
		s.out.bytes(nl.IPSET_ATTR_PROTOCOL, []byte{ipsetProtocolBy})
		s.out.bytes(ipsetAttrIndex|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint16(nil, index))
		s.out.end(start)
	}
	names := make(map[uint16]string, len(indexes))
	err := s.ask(func(m nftMessage) error {
		if at := m.seq - first; m.kind>>8 == unix.NFNL_SUBSYS_IPSET && int(at) < len(indexes) {
			names[indexes[at]] = string(nftName(nftAttr(m.body, nl.IPSET_ATTR_SETNAME)))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot ask for the names of the sets: %w", err)
	}
	return names, nil
}
