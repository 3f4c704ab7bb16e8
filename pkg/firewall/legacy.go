package firewall

import (
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"sync"
)

// LegacyPeek tells cheaply whether the legacy tables that hold rules of ours
// have changed: the kernel has no generation of these and announces nothing, so
// their blobs are read, which takes no command and no xtables lock. For one
// goroutine at a time, except Close.
//
// What packets change in a blob is left out: each rule's counters. The state of
// matches such as limit, hashlimit, recent or quota lies behind the part of
// their data that the kernel shows (usersize in struct xt_match; since Linux
// 4.11 the rest comes as zeros, xt_data_to_user in net/netfilter/x_tables.c).
type LegacyPeek struct {
	mu      sync.Mutex
	sockets [2]*legacySocket // by family
	seed    maphash.Seed
	closed  bool
}

// OpenLegacyPeek opens the sockets in the network namespace of the calling
// thread. Needs CAP_NET_ADMIN there.
func (f *Firewall) OpenLegacyPeek() (*LegacyPeek, error) {
	if f.backend != BackendLegacy {
		return nil, fmt.Errorf("cannot watch the legacy tables: the backend is %s", f.backend)
	}
	p := &LegacyPeek{seed: maphash.MakeSeed()}
	for _, fam := range Families {
		s, err := openLegacy(fam)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cannot watch the legacy %s tables: %w", fam, err), p.Close())
		}
		p.sockets[fam] = s
	}
	return p, nil
}

// Peek is a digest of the tables as they are now. Two of the same LegacyPeek
// are equal only if no rule, chain or policy has changed in between. Take it
// before the full look that it is to stand for, so that an edit during the look
// shows the next time.
func (p *LegacyPeek) Peek() (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, fmt.Errorf("cannot read the legacy tables: %w", os.ErrClosed)
	}
	var hash maphash.Hash
	hash.SetSeed(p.seed)
	for _, id := range tableIDs {
		s := p.sockets[id.family()]
		if s == nil {
			continue // a kernel without IPv6
		}
		names, err := s.tables()
		if err != nil {
			return 0, err
		}
		if !hasLine(names, id.name()) {
			continue
		}
		blob, err := s.read(id.name())
		if err != nil {
			return 0, err
		}
		if err := blob.maskCounters(); err != nil {
			return 0, err
		}
		_ = hash.WriteByte(byte(id)) // never fails, nor does Write
		_, _ = hash.Write(blob.entries)
	}
	return hash.Sum64(), nil
}

// Close gives the sockets back.
func (p *LegacyPeek) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for i, s := range p.sockets {
		if s != nil {
			errs = append(errs, s.close())
		}
		p.sockets[i] = nil
	}
	return errors.Join(errs...)
}
