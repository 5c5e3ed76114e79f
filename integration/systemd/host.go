package systemd

import (
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed root.sh host.sh host-init.sh
var scripts embed.FS

// Root returns the root directory that hosts begin with (see root.sh), kept in a directory that outlives tests. Making it takes minutes,
// once.
func Root(ctx context.Context, cache string) (string, error) {
	dir, err := os.MkdirTemp("", "debvisor-root-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	script, err := unpack(dir, "root.sh")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "/bin/bash", script, cache)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("make the root directory of hosts with systemd: %w: %s", err, said.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// A Host is a host that does not run yet.
type Host struct {
	Name string
	Root string            // what Root returned
	Dir  string            // what the host has of its own; kept over a power-off. Its parent's name tells hosts of one name apart.
	Seen map[string]string // paths of ours, by where the host sees them
	// Files are there before it is first started, by their paths.
	Files map[string]string
}

// Command prepares the host's directory and returns the command that is the host. It needs root, a mount namespace that ends with it,
// and the network namespace that is to be the host's.
func (h Host) Command() ([]string, error) {
	if err := os.MkdirAll(h.Dir, 0o755); err != nil {
		return nil, err
	}
	for path, content := range h.Files {
		to := filepath.Join(h.Dir, "upper", path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(to, []byte(content), 0o644); err != nil { //nolint:gosec // configuration, for all of the host
			return nil, err
		}
	}
	if _, err := unpack(h.Dir, "host-init.sh"); err != nil {
		return nil, err
	}
	script, err := unpack(h.Dir, "host.sh")
	if err != nil {
		return nil, err
	}
	args := []string{"/bin/bash", script, h.Dir, h.Name, h.Root}
	for there, ours := range h.Seen {
		args = append(args, ours+":"+there)
	}
	return args, nil
}

func unpack(dir, name string) (string, error) {
	raw, err := scripts.ReadFile(name)
	if err != nil {
		return "", err
	}
	to := filepath.Join(dir, name)
	return to, os.WriteFile(to, raw, 0o755) //nolint:gosec // it is run
}
