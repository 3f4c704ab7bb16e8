package launch

import (
	"slices"
	"strconv"
	"strings"
)

// The variables with which PostgreSQL's children change their own OOM score as they start, PostgreSQL manual, "Linux Memory Overcommit".
const (
	oomFile  = "PG_OOM_ADJUST_FILE"
	oomValue = "PG_OOM_ADJUST_VALUE"
)

// withoutIdleOOM leaves them out where they would set the score that a child has already: Landlock lets nobody write to
// procfs then, and each new connection would begin with a denial.
func (e environment) withoutIdleOOM(score int) environment {
	value, asked := "0", false // what PostgreSQL takes if there is no value
	for _, entry := range e.vars {
		asked = asked || strings.HasPrefix(entry, oomFile+"=")
		if v, ok := strings.CutPrefix(entry, oomValue+"="); ok {
			value = v
		}
	}
	if !asked || value != strconv.Itoa(score) {
		return e
	}
	e.vars = slices.DeleteFunc(slices.Clone(e.vars), func(entry string) bool {
		return strings.HasPrefix(entry, oomFile+"=") || strings.HasPrefix(entry, oomValue+"=")
	})
	return e
}
