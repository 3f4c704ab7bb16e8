package firewall

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ruleHandle names a jump of ours in a chain that iptables cannot print. It may
// be unable to delete there as well: it looks for the rule among the others and
// gives up at the first that it does not understand. A table never uses a handle
// twice, so nothing else can be hit.
type ruleHandle struct {
	chain  string
	handle uint64
	first  bool // to be deleted before the restore: nothing takes its place
}

// restoreRules restores each table and deletes the jumps that the restore's own
// take the place of, but only once those are there.
func (f *Firewall) restoreRules(ctx context.Context, p Plan, texts [3]string) (errs []error) {
	for _, id := range tableIDs {
		errs = append(errs, f.deleteHandles(id, p.handles[id], true))
	}
	written := f.restoreAll(ctx, texts)
	for _, id := range tableIDs {
		if written[id] == nil {
			errs = append(errs, f.deleteHandles(id, p.handles[id], false))
		}
	}
	return append(errs, written...)
}

// deleteHandles deletes those before or those behind the restore. A rule that is
// gone already is the next look's matter.
func (f *Firewall) deleteHandles(id TableID, handles []ruleHandle, first bool) (err error) {
	e := edits{batch: &nftWriter{}}
	e.begin(nftBatchBegin) // whatever the generation
	e.batch.end(e.last)
	empty := len(e.batch.data)
	for _, h := range handles {
		if h.first == first {
			e.remove(&imageTable{id: id}, h.chain, nftRule{handle: h.handle})
		}
	}
	if len(e.batch.data) == empty {
		return nil
	}
	e.finish()
	s, err := openNftSocket()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	f.own.portOnce(s.port)
	if err := s.commit(e.batch.data); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot delete our old jumps of %s: %w", id, err)
	}
	return nil
}
