package firewall

import (
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Digest stands for the state of all sets of ours: their names, types, options
// and members. It is good within this process. 0 says nothing: look properly.
type Digest uint64

// SetsPeek reads the digest of our sets by netlink: no command, next to no
// allocation, some microseconds for a set. The socket is opened at the first
// call, in the calling thread's network namespace, and kept. May be called from
// several goroutines.
//
// What an Observe after a SetsPeek found in order is so for as long as the
// digest is the same; after an Observe it may be that of a later change. It is
// 0 while a set of ours has members with a time, since their end is no change.
func (f *Firewall) SetsPeek() (Digest, error) {
	d, err := f.peek.digest()
	if err != nil {
		return 0, fmt.Errorf("cannot look at the sets: %w", err)
	}
	return d, nil
}

// setPeek keeps what SetsPeek needs from call to call. The zero value is ready.
type setPeek struct {
	mu    sync.Mutex
	conn  *ipsetConn
	names []byte // each ends in a NUL
	hash  maphash.Hash
	attrs ipsetAttrs
	timed bool // a set has members with a time
	times bool // the set that is being read keeps times

	foreign int // bytes of foreign sets in the last dump of all
	byName  int // for how many more calls foreign sets are left out

	onName, onSet func(payload []byte) error // of this value, made once
}

func (p *setPeek) digest() (d Digest, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil {
		if p.conn, err = openIpset(ipsetReceiveSmall); err != nil {
			return 0, err
		}
		p.conn.swift = true
		p.onName, p.onSet = p.name, p.set
	}
	p.hash.Reset() // keeps the seed
	p.names, p.timed = p.names[:0], false
	if err := p.read(); err != nil {
		p.conn.close()
		p.conn = nil
		return 0, err
	}
	if p.timed {
		return 0, nil
	}
	return Digest(max(1, p.hash.Sum64())), nil
}

const (
	// maxForeign is up to how many bytes of foreign sets it is cheaper to read all
	// sets at once, which takes a third of the calls.
	maxForeign = 64 << 10
	// byNameCalls is after how many calls that is tried again.
	byNameCalls = 1000
)

func (p *setPeek) read() error {
	if p.byName == 0 {
		p.foreign = 0
		p.conn.begin(nl.IPSET_CMD_LIST, unix.NLM_F_DUMP)
		err := p.conn.request(p.onSet)
		if p.foreign > maxForeign {
			p.byName = byNameCalls
		}
		return err
	}
	p.byName--
	p.conn.beginNames()
	if err := p.conn.request(p.onName); err != nil {
		return err
	}
	for rest := p.names; len(rest) > 0; {
		end := slices.Index(rest, 0)
		p.conn.beginDump(string(rest[:end])) // does not escape: no allocation
		err := p.conn.request(p.onSet)
		if err != nil && !errors.Is(err, unix.ENOENT) { // gone since it was listed: the digest lacks it
			return err
		}
		rest = rest[end+1:]
	}
	return nil
}

func (p *setPeek) name(payload []byte) error {
	if err := p.attrs.read(payload); err != nil {
		return err
	}
	if name := ipsetText(p.attrs[nl.IPSET_ATTR_SETNAME]); ownSet(string(name)) {
		p.names = append(append(p.names, name...), 0)
	}
	return nil
}

// set takes in one message of a dump. What the kernel counts about a set (who
// refers to it, its size in memory) is left out.
func (p *setPeek) set(payload []byte) error {
	if err := p.attrs.read(payload); err != nil {
		return err
	}
	if !ownSet(string(ipsetText(p.attrs[nl.IPSET_ATTR_SETNAME]))) {
		p.foreign += len(payload)
		return nil
	}
	for _, kind := range [...]int{nl.IPSET_ATTR_SETNAME, nl.IPSET_ATTR_TYPENAME, nl.IPSET_ATTR_FAMILY, nl.IPSET_ATTR_ADT} {
		p.write(kind, p.attrs[kind])
	}
	if p.attrs[nl.IPSET_ATTR_TYPENAME] != nil { // the first of its messages
		p.times = false
	}
	header := ipsetReader{rest: p.attrs[nl.IPSET_ATTR_DATA]}
	for kind, data, ok := header.next(); ok; kind, data, ok = header.next() {
		switch kind {
		case nl.IPSET_ATTR_REFERENCES, nl.IPSET_ATTR_MEMSIZE, nl.IPSET_ATTR_ELEMENTS:
		case nl.IPSET_ATTR_TIMEOUT:
			p.times = true
			p.write(kind, data)
		default:
			p.write(kind, data)
		}
	}
	p.timed = p.timed || (p.times && len(p.attrs[nl.IPSET_ATTR_ADT]) > 0)
	return header.err
}

// write makes it clear where data ends.
func (p *setPeek) write(kind int, data []byte) {
	var head [3]byte
	head[0], head[1], head[2] = byte(kind), byte(len(data)>>8), byte(len(data))
	_, _ = p.hash.Write(head[:]) // never fails
	_, _ = p.hash.Write(data)
}
