package machine

import (
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

//go:embed build.sh kernel.sh kernel.config tools/tools.c
var sources embed.FS

// Cache is the directory that what machines boot from is kept in: $DEBVISOR_CACHE, else one that all clones share, else, where that
// cannot be written, build/cache of the module that the working directory is in.
func Cache() (string, error) {
	const everybodys = "/var/cache/debvisor"
	if dir := os.Getenv("DEBVISOR_CACHE"); dir != "" {
		return dir, nil
	}
	if os.MkdirAll(everybodys, 0o755) == nil && unix.Access(everybodys, unix.W_OK) == nil {
		return everybodys, nil
	}
	dir, err := os.Getwd()
	return filepath.Join(moduleOf(dir), "build", "cache"), err
}

// Build returns the directory of what machines boot from (see build.sh), which takes minutes the first time on a host.
func Build(ctx context.Context) (string, error) {
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "debvisor-build-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.CopyFS(dir, sources); err != nil {
		return "", err
	}
	if err := os.Chmod(filepath.Join(dir, "kernel.sh"), 0o755); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "/bin/bash", filepath.Join(dir, "build.sh"), cache)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build what machines boot from: %w: %s", err, said.String())
	}
	return strings.TrimSpace(string(out)), nil
}
