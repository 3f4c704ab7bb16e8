// Command pghardend hardens a PostgreSQL host; see the package documentation of
// internal/cli for its commands.
package main

import (
	"os"

	"github.com/pghardend/pghardend/internal/cli"
)

func main() {
	os.Exit(cli.Run(os.Args))
}
