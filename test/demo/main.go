// Command demo shows pghardend at work: a VM and three neighbours in network
// namespaces, a real PostgreSQL, and what each of them can and cannot do. Every
// line is observed, not computed; the exit code is 1 if one is not as it should be.
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
		d := &demo{out: os.Stdout}
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
