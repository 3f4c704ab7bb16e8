package main

import (
	"context"
	"fmt"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
)

func (d *demo) build(ctx context.Context) error {
	d.say("initdb, a standby, three pgpools, and pghardend itself …")
	var err error
	d.in, err = testbed.NewInstance(ctx, testbed.InstanceSpec{Name: "demo", Services: true, WithoutLandlock: true})
	if err != nil {
		return err
	}
	what := map[string]string{
		"pg-0": "PostgreSQL, primary", "pg-1": "PostgreSQL, its standby",
		"pool-0": "pgpool", "pool-1": "pgpool", "pool-2": "pgpool",
		testbed.SiblingHost: "a VM of another tenant, on the same subnet", testbed.AppHost: "the tenant's application",
		testbed.ControlHost: "the provider's control plane and name server", testbed.MetadataHost: "the cloud's metadata service",
	}
	for _, h := range d.in.Hosts() {
		fmt.Fprintf(d.out, "   %-9s %-16v %-14v %s\n", h.Name(), h.V4(), h.V6(), what[h.Name()])
	}
	return nil
}

// protect waits for the agents, which start the services.
func (d *demo) protect(ctx context.Context) error {
	began := time.Now()
	after := func() time.Duration { return time.Since(began).Round(100 * time.Millisecond) }
	for _, a := range d.in.Agents() {
		waiting, cancel := context.WithTimeout(ctx, time.Minute)
		err := a.Await(waiting, "rules in place and the service ready", a.OK)
		cancel()
		if err != nil {
			return err
		}
		d.say("%-9s rules in place and its service ready after %v", a.Host().Name(), after())
	}
	d.say("waiting for replication and for pgpool's watchdog, which takes some ten seconds …")
	if err := d.in.AwaitReady(ctx); err != nil {
		return err
	}
	d.say("the standby streams, and all pgpools see both servers and a quorum, after %v", after())
	for i, p := range d.in.Pools {
		to := at(p.Host, i%2 == 1, p.Port)
		d.observe("app", fmt.Sprintf("psql to %v, through %s", to, p.Host.Name()), d.sql(ctx, d.in.App(), p.Conninfo(to.Addr())), "answered")
	}
	return nil
}
