package control

import "time"

// Denials is what services tried and may not.
type Denials struct {
	Source string   `json:"source"` // what tells of them: trace, audit, or none
	Last   []Denial `json:"last"`   // oldest first
}

// Denial is one thing that was denied to a service, for as long as the daemon remembers it.
type Denial struct {
	Service string    `json:"service"`
	What    string    `json:"what"`
	Count   uint64    `json:"count"` // since First, at least
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Who     *Culprit  `json:"who,omitempty"` // the last
}
