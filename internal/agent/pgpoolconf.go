package agent

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pghardend/pghardend/pkg/config"
)

// pgpoolFile is the configuration file that a pgpool command line names; "" if
// it names none by an absolute path.
func pgpoolFile(command []string) string {
	file := config.Option(command, "-f", "--config-file")
	if !filepath.IsAbs(file) {
		return ""
	}
	return file
}

// defaultInitChildren is num_init_children of a pgpool.conf that does not say.
const defaultInitChildren = 32

// parseNumInitChildren reads the one setting of pgpool.conf that says how many
// clients it takes: `name = value` or `name value`, the last one wins, text in
// quotes, # begins a comment (src/config/pool_config.l).
func parseNumInitChildren(data []byte) (int, error) {
	n := defaultInitChildren
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		end := strings.IndexAny(line, " \t=")
		if end < 0 || !strings.EqualFold(line[:end], "num_init_children") {
			continue
		}
		value := strings.Trim(strings.TrimSpace(line[end:]), "= \t'")
		v, err := strconv.Atoi(value)
		if err == nil {
			err = checkClients(v)
		}
		if err != nil {
			return 0, fmt.Errorf("line %d: num_init_children: %w", number, err)
		}
		n = v
	}
	return n, nil
}
