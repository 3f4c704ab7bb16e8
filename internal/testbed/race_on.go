//go:build race

package testbed

// raceEnabled says whether this program was built with the race detector; programs built for it are then too.
const raceEnabled = true
