package learn

import (
	"path"
	"path/filepath"
)

// places remembers where directories and files are, links followed: what
// Landlock judges, and not the name that a program used. They are looked up in
// our own mount namespace, a moment after the call.
type places map[string]string

// maxPlaces are remembered; then all are looked up anew.
const maxPlaces = 1 << 14

// entry resolves the directory that a path is in.
func (m places) entry(p string) string {
	return path.Join(m.resolve(path.Dir(p)), path.Base(p))
}

// file resolves a path whole. Of one that is gone, or that moves too often to be
// remembered, only the directory is.
func (m places) file(p string) string {
	if place, ok := m[p]; ok {
		return place
	}
	place, err := filepath.EvalSymlinks(p)
	if err != nil {
		return m.entry(p)
	}
	m.keep(p, place)
	return place
}

func (m places) resolve(dir string) string {
	if place, ok := m[dir]; ok {
		return place
	}
	place, err := filepath.EvalSymlinks(dir)
	if err != nil {
		place = dir
	}
	m.keep(dir, place)
	return place
}

func (m places) keep(p, place string) {
	if len(m) >= maxPlaces {
		clear(m)
	}
	m[p] = place
}
