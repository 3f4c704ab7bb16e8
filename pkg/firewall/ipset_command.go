package firewall

import (
	"context"
	"errors"
	"fmt"
)

// commandSets has the sets by the command ipset.
type commandSets struct {
	run     runner
	path    string
	missing error // why the command cannot be used
}

func (c commandSets) open(context.Context) (setSession, error) {
	if c.missing != nil {
		return nil, setAccessError{c.missing}
	}
	return c, nil
}

func (c commandSets) list(ctx context.Context) (map[string]ObservedSet, error) {
	out, err := c.run.run(ctx, "", c.path, "save")
	if err != nil {
		return nil, err
	}
	return ParseSets(out)
}

func (c commandSets) edit(ctx context.Context, ops []setOp) error {
	if len(ops) == 1 && ops[0].verb == verbDestroy { // a foreign set's name may hold what restore takes for words
		_, err := c.run.run(ctx, "", c.path, verbDestroy, ops[0].set)
		return err
	}
	_, err := c.run.run(ctx, restoreText(ops), c.path, "restore")
	return err
}

func (commandSets) close() {}

// eitherSets has the sets by the first way that is open.
type eitherSets []setKernel

func (e eitherSets) open(ctx context.Context) (setSession, error) {
	var reasons error
	for _, kernel := range e {
		s, err := kernel.open(ctx)
		if access := (setAccessError{}); !errors.As(err, &access) {
			return s, err
		}
		if reasons != nil {
			err = fmt.Errorf("%w; %w", reasons, err)
		}
		reasons = err
	}
	return nil, reasons
}

// noSets refuses everything, for a reason.
type noSets struct{ reason error }

func (n noSets) list(context.Context) (map[string]ObservedSet, error) { return nil, n.reason }
func (n noSets) edit(context.Context, []setOp) error                  { return n.reason }
func (noSets) close()                                                 {}
