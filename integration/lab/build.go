package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// build makes what has to be compiled, or finds it in the cache, and puts the guest's kernel and initramfs where all nodes see
// them.
func (l *Lab) build(ctx context.Context) error {
	if l.opts.Nodes == 0 && (l.opts.Machines == 0 || !l.opts.MachineLibvirt) {
		return nil
	}
	cache, err := l.cache()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, bash, filepath.Join(l.Dir, "guest", "build.sh"), cache)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("build what the lab needs: %w: %s", err, said.String())
	}
	l.built = strings.TrimSpace(string(out))
	for _, name := range []string{"vmlinuz", "initramfs", "initramfs-agent"} {
		raw, err := os.ReadFile(filepath.Join(l.built, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(l.shared(), name), raw, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// cache returns the directory that outlives labs: the module's build/cache, or the user's cache outside of a module.
func (l *Lab) cache() (string, error) {
	if l.opts.Cache != "" {
		return l.opts.Cache, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "build", "cache"), nil
		}
	}
	user, err := os.UserCacheDir()
	return filepath.Join(user, "debvisor-lab"), err
}
