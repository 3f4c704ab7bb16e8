package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/pghardend/pghardend/internal/control"
)

// printDenials prints the last things that were denied.
func printDenials(out io.Writer, d control.Denials) error {
	if len(d.Last) == 0 {
		return nil
	}
	shown := d.Last[max(0, len(d.Last)-shownDrifts):]
	fmt.Fprintf(out, "\nLAST DENIALS (%d of %d, told by %s)\n", len(shown), len(d.Last), d.Source)
	for _, x := range shown {
		fmt.Fprintf(out, "%s %s: %s", x.Last.Local().Format(time.RFC3339), x.Service, oneLine(x.What))
		if x.Count > 1 {
			fmt.Fprintf(out, ", %d times since %s", x.Count, x.First.Local().Format(time.RFC3339))
		}
		fmt.Fprintln(out)
		if x.Who != nil {
			fmt.Fprintf(out, "  by %s\n", oneLine(x.Who.String()))
		}
	}
	return nil
}
