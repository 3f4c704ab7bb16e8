package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pghardend/pghardend/pkg/config"
)

// A setting of a server, and where it is made. The value is the service user's:
// what is printed of it is only what it was compared with.
type setting struct{ value, where string }

// off: PostgreSQL takes each beginning of the words that is not ambiguous
// (parse_bool_with_len in src/backend/utils/adt/bool.c).
func (s setting) off() bool {
	return slices.Contains([]string{"0", "of", "off", "f", "fa", "fal", "fals", "false", "n", "no"}, strings.ToLower(s.value))
}

const (
	maxSettingsFile  = 1 << 20 // bytes
	maxSettingsFiles = 100
	maxIncludes      = 10 // depth, as in PostgreSQL
)

// settingsReader reads postgresql.conf and what it includes; the last value counts.
type settingsReader struct {
	found map[string]setting
	files int
}

// readPostgresSettings has the settings with which a server would start now: those
// of the command line, else of postgresql.auto.conf, else of postgresql.conf.
func readPostgresSettings(ctx context.Context, svc config.Service) (map[string]setting, error) {
	options := commandSettingsOf(svc.Command)
	file := filepath.Join(svc.DataDir, "postgresql.conf")
	if s, ok := options["config_file"]; ok {
		file = s.value
	}
	r := settingsReader{found: map[string]setting{}}
	if err := r.file(ctx, file, 0); err != nil {
		return nil, err
	}
	data := svc.DataDir
	if s, ok := r.found["data_directory"]; ok && svc.DataDir == "" {
		data = s.value
	}
	if err := r.file(ctx, filepath.Join(data, "postgresql.auto.conf"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for name, s := range options {
		r.found[name] = s
	}
	return r.found, nil
}

// commandSettingsOf are the settings on a command line: -c name=value, --name=value.
func commandSettingsOf(command []string) map[string]setting {
	found := map[string]setting{}
	for i := 1; i < len(command); i++ {
		text, ok := strings.CutPrefix(command[i], "--")
		switch {
		case ok:
		case command[i] == "-c" && i+1 < len(command):
			i++
			text = command[i]
		case strings.HasPrefix(command[i], "-c"):
			text = command[i][2:]
		default:
			continue
		}
		if name, value, ok := strings.Cut(text, "="); ok {
			found[settingName(strings.ReplaceAll(name, "-", "_"))] = setting{value, "the command line"}
		}
	}
	return found
}

func settingName(s string) string { return strings.ToLower(strings.TrimSpace(s)) }

// file reads one file. Includes are followed as PostgreSQL does (src/backend/utils/misc/guc-file.l),
// within bounds: the files may be the service user's, who could make them endless.
func (r *settingsReader) file(ctx context.Context, path string, depth int) error {
	if r.files++; r.files > maxSettingsFiles || depth > maxIncludes {
		return fmt.Errorf("cannot read %s: more files are included than %d, or deeper than %d", path, maxSettingsFiles, maxIncludes)
	}
	data, err := readForeign(ctx, path, maxSettingsFile)
	if err != nil {
		return err
	}
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		name, value, ok := parseSetting(line)
		if !ok {
			continue
		}
		switch name {
		case "include", "include_if_exists":
			err = r.file(ctx, relativeTo(path, value), depth+1)
			if name == "include_if_exists" && errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		case "include_dir":
			err = r.directory(ctx, relativeTo(path, value), depth+1)
		default:
			r.found[name] = setting{value, fmt.Sprintf("%s:%d", path, number)}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *settingsReader) directory(ctx context.Context, dir string, depth int) error {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".conf") || strings.HasPrefix(e.Name(), ".") || e.IsDir() {
			continue
		}
		if err := r.file(ctx, filepath.Join(dir, e.Name()), depth); err != nil {
			return err
		}
	}
	return nil
}

func relativeTo(file, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(file), path)
}

// parseSetting reads `name = value` or `name value`; a value in quotes may have a #
// in it, and a quote that is doubled or behind a backslash.
func parseSetting(line string) (name, value string, ok bool) {
	line = strings.TrimSpace(line)
	end := strings.IndexAny(line, " \t='#")
	if end <= 0 {
		return "", "", false
	}
	name = settingName(line[:end])
	rest := strings.TrimSpace(line[end:])
	rest = strings.TrimSpace(strings.TrimPrefix(rest, "="))
	if !strings.HasPrefix(rest, "'") {
		value, _, _ = strings.Cut(rest, "#")
		return name, strings.TrimSpace(value), true
	}
	var b strings.Builder
	for i := 1; i < len(rest); i++ {
		switch c := rest[i]; {
		case (c == '\\' || c == '\'') && i+1 < len(rest) && (c == '\\' || rest[i+1] == '\''):
			i++
			b.WriteByte(rest[i])
		case c == '\'':
			return name, b.String(), true
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false // the quote does not end: PostgreSQL refuses the file
}

// readPgpoolSettings: pgpool.conf has the same form, and names in any case
// (delegate_IP).
func readPgpoolSettings(ctx context.Context, path string) (map[string]setting, error) {
	r := settingsReader{found: map[string]setting{}}
	if err := r.file(ctx, path, 0); err != nil {
		return nil, err
	}
	return r.found, nil
}
