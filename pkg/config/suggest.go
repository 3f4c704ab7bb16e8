package config

import "strings"

// nearest returns the known name that was most likely meant by name, or "".
func nearest(name string, known []string) string {
	const longest = 64 // no known name is near it, and the distance is quadratic
	if len(name) > longest {
		return ""
	}
	best, bestDistance := "", 0
	for _, k := range known {
		d := distance(folded(name), folded(k))
		if d <= max(1, len(k)/3) && (best == "" || d < bestDistance) {
			best, bestDistance = k, d
		}
	}
	return best
}

// folded drops what people get wrong without noticing: case, - for _, and the
// prefix that the C headers give to resource limits.
func folded(s string) string {
	s = strings.ReplaceAll(strings.ToLower(s), "-", "_")
	return strings.TrimPrefix(s, "rlimit_")
}

// distance is the Levenshtein distance of two names in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j]+1, row[j+1]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}

// didYouMean is the fix for a name that is not one of the known ones.
func didYouMean(name string, known []string, what string) string {
	if near := nearest(name, known); near != "" {
		return "did you mean " + near + "?"
	}
	return what + ": " + strings.Join(known, ", ")
}
