package testvm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Image is a name that scripts/vm-image.sh knows.
type Image string

// The images.
const (
	Debian12 Image = "debian12" // Linux 6.1, systemd 252, PostgreSQL 15, SELinux
	Debian13 Image = "debian13" // Linux 6.12, systemd 257, PostgreSQL 17
)

// Postgres is the version of the image's server.
func (i Image) Postgres() string {
	if i == Debian13 {
		return "17"
	}
	return "15"
}

// Root returns the directory of the repository, which is that of the working directory or above it.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "scripts/vm-image.sh")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("cannot find scripts/vm-image.sh in %s or above: run it inside the repository", dir)
		}
	}
}

// cacheDir is where images, overlays and consoles are.
func cacheDir() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	if dir := os.Getenv("PGHARDEND_VM_CACHE"); dir != "" {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(root, dir)
		}
		return dir, nil
	}
	return filepath.Join(root, "build/vm"), nil
}

// Build makes the image unless it is there, reports on progress, and returns its directory.
func Build(ctx context.Context, image Image, progress io.Writer) (string, error) {
	path, err := built(ctx, progress, "scripts/vm-image.sh", string(image))
	if err != nil {
		return "", fmt.Errorf("cannot build the image %s: %w", image, err)
	}
	return path, nil
}

// withPolicy is a copy of an image's disk that has the module of policies/selinux, made unless it is there.
func withPolicy(ctx context.Context, image string, progress io.Writer) (string, error) {
	path, err := built(ctx, progress, "scripts/vm-selinux.sh", image)
	if err != nil {
		return "", fmt.Errorf("cannot put the SELinux module into the image: %w", err)
	}
	return path, nil
}

// built runs a script of the repository that prints the path of what it has made.
func built(ctx context.Context, progress io.Writer, script, arg string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(root, script), arg)
	cmd.Dir = root
	cmd.Stdout, cmd.Stderr = &out, progress
	if err := cmd.Run(); err != nil {
		return "", err
	}
	path := strings.TrimSpace(out.String())
	if !filepath.IsAbs(path) {
		path = filepath.Join(root, path)
	}
	return path, nil
}

// disk writes the content of a directory to a new file system at path, all of it owned by root.
func disk(ctx context.Context, dir, path string) error {
	size, err := treeSize(dir)
	if err != nil {
		return err
	}
	// Room for inodes and the tables of the file system.
	blocks := fmt.Sprintf("%dk", size/1024*5/4+8192)
	return tool(ctx, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-L", "payload", "-d", dir, path, blocks)
}

func treeSize(dir string) (int64, error) {
	var size int64
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil {
			size += info.Size() + 4096
		}
		return err
	})
	return size, err
}

// tool runs a command and has what it said in the error.
func tool(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot run %s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
