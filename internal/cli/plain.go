package cli

import (
	"bytes"
	"io"
	"unicode"
)

// plainWriter keeps control characters from a terminal: what is printed may hold
// names that a service's user has chosen. Each Write holds whole characters.
type plainWriter struct{ w io.Writer }

func (p plainWriter) Write(text []byte) (int, error) {
	if _, err := p.w.Write(plain(text)); err != nil {
		return 0, err
	}
	return len(text), nil
}

func plain(text []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if controls(r) && r != '\n' && r != '\t' {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// controls is also true of what turns the direction of text around.
func controls(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }
