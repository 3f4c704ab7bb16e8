// Command generate writes what packages carry beside the program: the manual
// pages, from docs/man and from the command line's own definition, and the
// completions for shells.
//
//	go run ./packaging/generate -version 1.2.3 -date 2026-11-23 DIR
package main

import (
	"bytes"
	"compress/gzip"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"

	"github.com/pghardend/pghardend/internal/cli"
)

func main() {
	version := flag.String("version", "devel", "version of the program")
	date := flag.String("date", "", "date of the pages, YYYY-MM-DD")
	sources := flag.String("man", "docs/man", "directory of the pages' sources")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: generate [-version V] [-date D] [-man DIR] DIRECTORY")
		os.Exit(2) //nolint:forbidigo // this is main
	}
	if err := generate(*sources, flag.Arg(0), *version, *date); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func generate(sources, dir, version, date string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // what is in packages is public
		return fmt.Errorf("cannot make the directory: %w", err)
	}
	pages, err := filepath.Glob(filepath.Join(sources, "*.[0-9].md"))
	if err != nil || len(pages) == 0 {
		return fmt.Errorf("cannot find the pages' sources in %s: %w", sources, err)
	}
	for _, page := range pages {
		text, err := manual(page, version, date)
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(filepath.Base(page), ".md") + ".gz"
		if err := write(filepath.Join(dir, name), compressed(text)); err != nil {
			return err
		}
	}
	for shell, name := range map[string]string{"bash": "pghardend.bash", "zsh": "_pghardend", "fish": "pghardend.fish"} {
		var script bytes.Buffer
		if err := cli.WriteCompletion(&script, shell); err != nil {
			return err
		}
		if err := write(filepath.Join(dir, name), script.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// manual renders one page. @VERSION@ and @DATE@ stand in its first line, @COMMANDS@
// where the commands go.
func manual(page, version, date string) ([]byte, error) {
	source, err := os.ReadFile(page) //nolint:gosec // a file of the sources
	if err != nil {
		return nil, fmt.Errorf("cannot read the source of a page: %w", err)
	}
	var commands bytes.Buffer
	if err := cli.WriteManual(&commands); err != nil {
		return nil, err
	}
	text := strings.NewReplacer("@VERSION@", version, "@DATE@", date, "@COMMANDS@", commands.String()).Replace(string(source))
	return md2man.Render([]byte(text)), nil
}

// compressed has neither a name nor a time in it, so that the same text gives the same bytes.
func compressed(text []byte) []byte {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // the level is one that exists
	_, _ = w.Write(text)                                  // into memory
	_ = w.Close()
	return b.Bytes()
}

func write(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o644); err != nil { //nolint:gosec // what is in packages is public
		return fmt.Errorf("cannot write what belongs into the packages: %w", err)
	}
	return nil
}
