// Command demo shows pghardend at work: a tenant's five VMs with real PostgreSQL and pgpool, and their neighbours, in network
// namespaces; who reaches whom, what a reverse shell out of the database meets, and what becomes of a flush. Every line is
// observed, not computed; the exit code is 1 if one is not as it should be.
//
// KEEP=1 leaves everything running until Ctrl-C and says how to look around.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/pghardend/pghardend/internal/testbed"
)

func main() {
	os.Exit(testbed.Main(func(ctx context.Context) int {
		d := newDemo(os.Stdout)
		if err := d.run(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "demo: %v\n", err)
			return 1
		}
		if d.wrong > 0 {
			fmt.Fprintf(os.Stderr, "demo: %d observations are not as they should be\n", d.wrong)
			return 1
		}
		return 0
	}))
}
