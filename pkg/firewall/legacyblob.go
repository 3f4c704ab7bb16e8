package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// legacyBlob is a legacy table as the kernel has it: the entries of all chains
// one behind the other. A built-in chain's last is its policy, a chain of
// somebody's own begins with one of target ERROR that has the chain's name and
// ends with a RETURN, and the last of all is an ERROR again.
type legacyBlob struct {
	*legacyLayout
	valid    uint32              // bit mask of the hooks that the table has
	policies [legacyHooks]uint32 // offsets of their policies' entries
	entries  []byte
}

// newLegacyBlob reads struct ipt_getinfo, and the size of the entries in it.
func newLegacyBlob(layout *legacyLayout, info []byte) (b legacyBlob, size int) {
	b.legacyLayout = layout
	b.valid = binary.NativeEndian.Uint32(info[32:])
	for hook := range b.policies {
		b.policies[hook] = binary.NativeEndian.Uint32(info[56+4*hook:])
	}
	return b, int(binary.NativeEndian.Uint32(info[80:]))
}

var errLegacyBlob = errors.New("cannot read a legacy table: the entries have an unknown form; this is a kernel that pghardend does not know")

// each calls f for every entry.
func (b legacyBlob) each(f func(entry []byte) error) error {
	for rest := b.entries; len(rest) > 0; {
		if len(rest) < b.head {
			return errLegacyBlob
		}
		target := int(binary.NativeEndian.Uint16(rest[b.targetOffset:]))
		next := int(binary.NativeEndian.Uint16(rest[b.targetOffset+2:]))
		if target < b.head || next < target+legacyTargetHead || next > len(rest) {
			return errLegacyBlob
		}
		if err := f(rest[:next]); err != nil {
			return err
		}
		rest = rest[next:]
	}
	return nil
}

// maskCounters clears what packets change, in place.
func (b legacyBlob) maskCounters() error {
	return b.each(func(entry []byte) error {
		clear(entry[b.counters:b.head])
		return nil
	})
}

// legacyTargetHead is struct xt_entry_target: a size of 16 bits, 29 bytes of
// name and the revision; its data begin at the next multiple of 8.
const legacyTargetHead = 32

// target is the name and data of an entry's target, "" for a verdict or jump.
func (b legacyBlob) target(entry []byte) (name string, data []byte) {
	t := entry[binary.NativeEndian.Uint16(entry[b.targetOffset:]):]
	return cString(t[2:31]), t[legacyTargetHead:]
}

// legacyDrop is NF_DROP as the verdict of a standard target has it.
const legacyDrop = -1

// legacyContent is what a table holds.
type legacyContent struct {
	rules  int // without policies and the marks of a chain's ends
	chains []string
	drops  [legacyHooks]bool // the policy of that hook is DROP
}

func (b legacyBlob) content() (legacyContent, error) {
	var c legacyContent
	offset := uint32(0)
	err := b.each(func(entry []byte) error {
		defer func() { offset += uint32(len(entry)) }()
		name, data := b.target(entry)
		c.rules++
		if name == "ERROR" {
			c.rules--
			c.chains = append(c.chains, cString(data))
		}
		for hook := range legacyHooks {
			if b.valid&(1<<hook) != 0 && b.policies[hook] == offset {
				c.rules--
				c.drops[hook] = name == "" && len(data) >= 4 && int32(binary.NativeEndian.Uint32(data)) == legacyDrop
			}
		}
		return nil
	})
	if err != nil || len(c.chains) == 0 {
		return legacyContent{}, errors.Join(err, errLegacyBlob)
	}
	c.chains = c.chains[:len(c.chains)-1] // the end of all
	c.rules -= len(c.chains)              // each ends with a RETURN of its own
	return c, nil
}

func cString(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}

// hasLine says whether a text has a line that is just the word.
func hasLine(text []byte, word string) bool {
	for line := range bytes.Lines(text) {
		if string(bytes.TrimSuffix(line, []byte("\n"))) == word {
			return true
		}
	}
	return false
}
