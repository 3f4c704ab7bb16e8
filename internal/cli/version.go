package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func newVersion(o *options) *cobra.Command {
	return o.jsonFlag(&cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if o.json {
				return o.printJSON(map[string]string{"version": version, "go": runtime.Version(), "arch": runtime.GOARCH})
			}
			_, err := fmt.Fprintf(o.out, "pghardend %s (%s, %s)\n", version, runtime.Version(), runtime.GOARCH)
			return err
		},
	})
}
