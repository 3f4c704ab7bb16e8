package e2e

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/test/reach"
)

// instance is the bed of the tests of the whole: the five VMs of a tenant, their agents and services, and the neighbours.
type instance struct {
	*testbed.Instance
	t   *testing.T
	ctx context.Context
}

const instanceTimeout = 10 * time.Minute

// startInstance returns when all that the spec asks for is ready.
func startInstance(t *testing.T, spec testbed.InstanceSpec) *instance {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), instanceTimeout)
	t.Cleanup(cancel)
	spec.Name = bedName(spec.Name)
	in, err := testbed.NewInstance(ctx, spec)
	must(t, err)
	t.Cleanup(func() { must(t, in.Close()) })
	must(t, in.AwaitReady(ctx))
	return &instance{Instance: in, t: t, ctx: ctx}
}

// expected is the matrix as it is written down.
func expected(t *testing.T) reach.Matrix {
	t.Helper()
	data, err := os.ReadFile("../../testdata/instance/matrix.txt")
	must(t, err)
	m, err := reach.Parse(data)
	must(t, err)
	return m
}
