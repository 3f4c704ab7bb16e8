package learn

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// MaxSize is that of a recording, in bytes; real ones have some 50 kB.
const MaxSize = 16 << 20

var (
	runID    = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9a-f]{16}$`) })
	callName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z_][a-z0-9_]{0,63}$`) })
	useName  = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][a-zA-Z0-9 ._+-]{0,63}$`) })
)

// Parse reads a recording strictly: keys must be known, spelt exactly and not
// repeated, and values in the form that Render gives them, in any order. file is
// used in messages, which have the line.
func Parse(file string, data []byte) (Recording, error) {
	if len(data) > MaxSize {
		return Recording{}, fmt.Errorf("cannot read the recording %s: more than %d bytes", file, MaxSize)
	}
	var r Recording
	err := decodeStrictly(data, &r)
	if err == nil {
		err = check(data, r)
	}
	var at *placeError
	if errors.As(err, &at) {
		return Recording{}, fmt.Errorf("cannot read the recording %s:%d: %w: record it anew, or undo the edit", file, lineAt(data, at.offset), at.err)
	}
	if err != nil {
		return Recording{}, fmt.Errorf("cannot read the recording %s: %w", file, err)
	}
	return Merge(r, r) // in order
}

// placeError is an error with its place, in bytes.
type placeError struct {
	offset int64
	err    error
}

func (f *placeError) Error() string { return f.err.Error() }
func (f *placeError) Unwrap() error { return f.err }

func lineAt(data []byte, offset int64) int {
	return 1 + bytes.Count(data[:min(max(offset, 0), int64(len(data)))], []byte("\n"))
}

func decodeStrictly(data []byte, into *Recording) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		offset := dec.InputOffset()
		var syntax *json.SyntaxError
		var kind *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syntax):
			offset = syntax.Offset
		case errors.As(err, &kind):
			offset = kind.Offset
		case errors.Is(err, io.ErrUnexpectedEOF):
			offset = int64(len(data))
		default: // an unknown key, of which the decoder does not tell the place
			if _, key, ok := strings.Cut(err.Error(), "unknown field "); ok {
				offset = int64(bytes.Index(data, []byte(key)))
			}
		}
		return &placeError{offset, err}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return &placeError{dec.InputOffset(), errors.New("there is more text after the recording")}
	}
	return checkKeys(data)
}

// knownKeys are those of objects whose keys are not data.
var knownKeys = map[string]bool{
	"format": true, "version": true, "service": true, "architecture": true, "runs": true, "processes": true,
	"id": true, "started": true, "seconds": true, "start": true, "lost": true, "unresolved": true,
	"calls": true, "files": true, "bind": true, "connect": true, "name": true, "args": true,
}

// checkKeys refuses what encoding/json takes: keys in another case and keys that
// are there twice. What is nested has been decoded, so its depth is bounded.
func checkKeys(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	var walk func(free bool) error
	walk = func(free bool) error {
		tok, err := dec.Token()
		open, ok := tok.(json.Delim)
		if err != nil || !ok {
			return err
		}
		seen := map[string]bool{}
		for dec.More() {
			inner := false
			if open == '{' {
				tok, err := dec.Token()
				if err != nil {
					return err
				}
				key, _ := tok.(string)
				if seen[key] || !free && !knownKeys[key] {
					return &placeError{dec.InputOffset(), fmt.Errorf("the key %q is not known, or is here twice", key)}
				}
				seen[key] = true
				inner = !free && (key == "processes" || key == "files")
			}
			if err := walk(inner); err != nil {
				return err
			}
		}
		_, err = dec.Token() // the closing delimiter
		return err
	}
	return walk(false)
}

// check looks at the values. The place is where the text of a value is first.
func check(data []byte, r Recording) error {
	bad := func(value any, format string, args ...any) error {
		text, _ := json.Marshal(value) //nolint:errchkjson // text and numbers
		return &placeError{int64(bytes.Index(data, text)), fmt.Errorf(format, args...)}
	}
	switch {
	case r.Format != Format:
		return bad(r.Format, "format is %q, not %q", r.Format, Format)
	case r.Version != Version:
		return bad("version", "version %d is not one that this program reads (%d)", r.Version, Version)
	case !useName().MatchString(r.Service):
		return bad(r.Service, "service %q is not a name", r.Service)
	case r.Architecture != "amd64" && r.Architecture != "arm64":
		return bad(r.Architecture, "architecture %q is neither amd64 nor arm64", r.Architecture)
	}
	for _, x := range r.Runs {
		if _, err := time.Parse(time.RFC3339, x.Started); err != nil || !runID().MatchString(x.ID) {
			return bad(x.ID, "run %q has no id of 16 hexadecimal digits, or no time", x.ID)
		}
	}
	for name, use := range r.Processes {
		if !useName().MatchString(name) {
			return bad(name, "%q is not a type of process", name)
		}
		for _, c := range use.Calls {
			if !callName().MatchString(c.Name) || len(c.Args) > 3 {
				return bad(c.Name, "%q is not a system call with at most 3 arguments", c.Name)
			}
		}
		for access, files := range use.Files {
			if !slices.Contains([]Access{Read, Update, Write, Link, Socket, Execute}, access) {
				return bad(access, "%q is not a kind of access", access)
			}
			for _, p := range files {
				if !validPlace(p) {
					return bad(p, "%q is not an absolute, clean path", p)
				}
			}
		}
	}
	return nil
}

func validPlace(p string) bool {
	rest := strings.TrimSuffix(p, "/")
	if tail, ok := strings.CutPrefix(rest, dataDirMark); ok {
		rest = "/data" + tail
	}
	return len(rest) > 1 && rest[0] == '/' && path.Clean(rest) == rest && !strings.ContainsRune(p, 0)
}
