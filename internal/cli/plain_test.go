package cli

import (
	"bytes"
	"errors"
	"testing"
)

func TestNoControlCharacterReachesTheTerminal(t *testing.T) {
	const from, want = "a\x1b[2J\tö\u009b\x9b\r\x7f\u202e\n", "a\ufffd[2J\tö\ufffd\ufffd\ufffd\ufffd\ufffd\n"
	var out bytes.Buffer
	if n, err := (plainWriter{&out}).Write([]byte(from)); n != len(from) || err != nil || out.String() != want {
		t.Errorf("%d %v %q, want %q", n, err, out.String(), want)
	}
	out.Reset()
	o := &options{errOut: &out}
	if o.exitCode(errors.New(from)); out.String() != "pghardend: a\ufffd[2J\tö\ufffd\ufffd\ufffd\ufffd\ufffd\n" {
		t.Errorf("%q", out.String())
	}
}
