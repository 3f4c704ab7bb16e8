package firewall

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// netlinkSets has the sets by netlink.
type netlinkSets struct{}

func (netlinkSets) open(ctx context.Context) (setSession, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := openIpset(ipsetReceive)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// list reads the names first: a foreign set may be of any size. A set that goes
// away meanwhile is not there.
func (c *ipsetConn) list(ctx context.Context) (map[string]ObservedSet, error) {
	names, err := c.names()
	if err != nil {
		return nil, err
	}
	sets := map[string]ObservedSet{}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c.beginDump(name)
		var d setDecoder
		err := c.request(d.message)
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			return nil, fmt.Errorf("%s: %w", printable(name), err)
		default:
			sets[name] = d.set()
		}
	}
	return sets, nil
}

// names lists the sets that are ours by name.
func (c *ipsetConn) names() ([]string, error) {
	var names []string
	c.beginNames()
	err := c.request(func(payload []byte) error {
		var a ipsetAttrs
		if err := a.read(payload); err != nil {
			return err
		}
		if name := a.name(nl.IPSET_ATTR_SETNAME); ownSet(name) {
			names = append(names, name)
		}
		return nil
	})
	return names, err
}

func (c *ipsetConn) beginNames() {
	c.begin(nl.IPSET_CMD_LIST, unix.NLM_F_DUMP)
	c.out.uint32(nl.IPSET_ATTR_FLAGS, ipsetListNames)
}

func (c *ipsetConn) beginDump(name string) {
	c.begin(nl.IPSET_CMD_LIST, unix.NLM_F_DUMP)
	c.out.text(nl.IPSET_ATTR_SETNAME, name)
}

func (c *ipsetConn) edit(_ context.Context, ops []setOp) error {
	for _, op := range ops {
		var err error
		switch op.verb {
		case verbCreate:
			err = c.create(op)
		case verbAdd:
			err = c.change(nl.IPSET_CMD_ADD, op)
		case verbDel:
			err = c.change(nl.IPSET_CMD_DEL, op)
		case verbSwap:
			c.begin(nl.IPSET_CMD_SWAP, 0)
			c.out.text(nl.IPSET_ATTR_SETNAME, op.set)
			c.out.text(nl.IPSET_ATTR_SETNAME2, op.other)
			err = c.request(nil)
		case verbDestroy:
			c.begin(nl.IPSET_CMD_DESTROY, 0)
			c.out.text(nl.IPSET_ATTR_SETNAME, op.set)
			err = c.request(nil)
		default:
			err = errors.New("no such operation")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", op.title(err), err)
		}
	}
	return nil
}

// title is the operation, with the member at which it failed.
func (op setOp) title(err error) string {
	words := []string{op.verb, printable(op.set)}
	if op.other != "" {
		words = append(words, printable(op.other))
	}
	var e setError
	if errors.As(err, &e) && e.line > 0 && e.line <= len(op.members) {
		words = append(words, op.members[e.line-1].String())
	}
	return strings.Join(words, " ")
}

func (c *ipsetConn) create(op setOp) error {
	family := op.like.Family.nfproto()
	revision, err := c.revisionOf(op.like.setType(), family)
	if err != nil {
		return err
	}
	c.begin(nl.IPSET_CMD_CREATE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	c.out.text(nl.IPSET_ATTR_SETNAME, op.set)
	c.out.text(nl.IPSET_ATTR_TYPENAME, op.like.setType())
	c.out.byte(nl.IPSET_ATTR_REVISION, revision)
	c.out.byte(nl.IPSET_ATTR_FAMILY, family)
	data := c.out.open(nl.IPSET_ATTR_DATA)
	c.out.uint32(nl.IPSET_ATTR_MAXELEM, setMaxEntries)
	c.out.uint32(nl.IPSET_ATTR_HASHSIZE, uint32(op.hashSize))
	if op.like.Timed {
		c.out.uint32(nl.IPSET_ATTR_TIMEOUT, defaultTimeout)
	}
	c.out.close(data)
	return c.request(nil)
}

// The revisions of our types that we ask for: those of Linux 3.19, which kernels
// and ipset commands have known since. A command could not list sets of a newer
// one than it knows, and we use nothing of what newer ones can do.
const (
	revisionNet     = 6
	revisionNetPort = 7
)

// revisionOf is the revision that we ask for, or the nearest that the kernel
// has. Asking makes the kernel load the type's module.
func (c *ipsetConn) revisionOf(kind string, family byte) (byte, error) {
	key := fmt.Sprint(kind, family)
	if r, ok := c.revision[key]; ok {
		return r, nil
	}
	wanted := byte(revisionNet)
	if kind == typeNetPort {
		wanted = revisionNetPort
	}
	c.begin(nl.IPSET_CMD_TYPE, 0)
	c.out.text(nl.IPSET_ATTR_TYPENAME, kind)
	c.out.byte(nl.IPSET_ATTR_FAMILY, family)
	err := c.request(func(payload []byte) error {
		var a ipsetAttrs
		err := a.read(payload)
		wanted = max(min(wanted, byte(a.number(nl.IPSET_ATTR_REVISION))), byte(a.number(nl.IPSET_ATTR_REVISION_MIN)))
		return err
	})
	if err == nil {
		c.revision[key] = wanted
	}
	return wanted, err
}

// change adds or deletes members, many in one message.
func (c *ipsetConn) change(cmd int, op setOp) error {
	flags := uint16(unix.NLM_F_EXCL)
	if op.exist {
		flags = 0
	}
	for line := 0; line < len(op.members); {
		c.begin(cmd, flags)
		c.out.text(nl.IPSET_ATTR_SETNAME, op.set)
		c.out.uint32(nl.IPSET_ATTR_LINENO, uint32(line+1))
		list := c.out.open(nl.IPSET_ATTR_ADT)
		for line < len(op.members) && len(c.out.b) < ipsetBatch {
			c.out.member(op.members[line], line+1)
			line++
		}
		c.out.close(list)
		if err := c.request(nil); err != nil {
			return err
		}
	}
	return nil
}
