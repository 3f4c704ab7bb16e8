// Command bench measures, on this machine and in namespaces of its own, what pghardend costs. Everything it prints was
// measured in this run; compare the ratios, not the milliseconds of two machines.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/pghardend/pghardend/internal/testbed"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == profiled {
		os.Exit(daemon(os.Args[2:]))
	}
	if len(os.Args) == 3 && os.Args[1] == dumped {
		os.Exit(dump(os.Args[2], os.Stdout))
	}
	os.Exit(testbed.Main(func(ctx context.Context) int {
		if err := bench(ctx, os.Stdout, os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %v\n", err)
			return 1
		}
		return 0
	}))
}
