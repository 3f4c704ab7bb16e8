package trace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
)

const (
	maxKinds  = 8192     // of denials: a few services, with a few hundred calls each that somebody may try
	ringBytes = 64 << 10 // 180 events
)

// ErrClosed means that the Denials were closed.
var ErrClosed = errors.New("closed")

// Denials hears of what is denied to members. See the package's comment.
type Denials struct {
	members *Members
	counts  *ebpf.Map
	events  *ebpf.Map
	exit    link.Link
	move    link.Link // nil: of moves nobody is told
	unmoved error     // why
	reader  *ringbuf.Reader
	record  ringbuf.Record
}

// OpenDenials begins to count and to report. The error is an [*UnsupportedError] where
// that cannot be done.
func OpenDenials(ctx context.Context, members *Members) (*Denials, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d := &Denials{members: members}
	if err := d.open(); err != nil {
		return nil, &UnsupportedError{errors.Join(err, d.Close())}
	}
	return d, nil
}

func (d *Denials) open() error {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	l, err := readLayout(spec)
	if err != nil {
		return err
	}
	d.counts, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pgh_counts", Type: ebpf.Hash, KeySize: keySize, ValueSize: valueSize, MaxEntries: maxKinds})
	if err != nil {
		return err
	}
	d.events, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pgh_events", Type: ebpf.RingBuf, MaxEntries: ringBytes})
	if err != nil {
		return err
	}
	if d.reader, err = ringbuf.NewReader(d.events); err != nil {
		return err
	}
	m := maps{members: d.members.tasks.FD(), counts: d.counts.FD(), events: d.events.FD(), lost: d.members.losses.FD()}
	if d.exit, err = attach(exitProgram(m, l)); err != nil {
		return err
	}
	d.move, d.unmoved = attach(moveProgram(m, l))
	return nil
}

// Moves is why nobody is told of moves, or nil.
func (d *Denials) Moves() error { return d.unmoved }

// Next waits for the next event. Once ctx has ended, or after Close, it is ErrClosed.
func (d *Denials) Next(ctx context.Context) (Event, error) {
	stop := context.AfterFunc(ctx, func() { _ = d.reader.Close() }) // the only way to end a read
	defer stop()
	err := d.reader.ReadInto(&d.record)
	switch {
	case errors.Is(err, os.ErrClosed):
		return Event{}, ErrClosed
	case err != nil:
		return Event{}, fmt.Errorf("cannot hear of denials: %w", err)
	}
	return parseEvent(d.record.RawSample)
}

// Count is how often something was denied since Denials were opened.
type Count struct {
	Kind    Kind
	Service uint32
	Number  int           // as in Event
	Errno   syscall.Errno // as in Event
	Count   uint64
}

// Counts are all of them, in no order.
func (d *Denials) Counts(ctx context.Context) ([]Count, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var list []Count
	var key [keySize]byte
	var value [valueSize]byte
	entries := d.counts.Iterate()
	for entries.Next(&key, &value) {
		list = append(list, parseCount(key, value))
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("cannot read what was denied: %w", err)
	}
	return list, nil
}

func parseCount(key [keySize]byte, value [valueSize]byte) Count {
	word := func(off int) uint32 { return binary.NativeEndian.Uint32(key[off:]) }
	return Count{
		Service: word(0), Number: number(word(4)), Errno: syscall.Errno(word(8)), Kind: Kind(word(12)),
		Count: binary.NativeEndian.Uint64(value[:]),
	}
}

// Close ends it. The Members stay.
func (d *Denials) Close() error {
	var errs []error
	for _, l := range []link.Link{d.exit, d.move} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	if d.reader != nil {
		errs = append(errs, d.reader.Close())
	}
	return errors.Join(append(errs, d.counts.Close(), d.events.Close())...)
}
