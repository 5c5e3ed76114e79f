package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// WriteEnter writes a script for every place of the lab that runs a command, or a shell, in that place: <dir>/operator with
// hvctl's environment for the first replica, <dir>/on-r1, <dir>/on-n1 and so on. For people; it returns the paths.
func (l *Lab) WriteEnter() ([]string, error) {
	places := []*Place{l.Operator}
	for _, r := range l.Replicas {
		places = append(places, r.Place)
	}
	for _, n := range l.Nodes {
		places = append(places, n.Place)
	}
	var paths []string
	for _, p := range places {
		path := filepath.Join(l.Dir, "on-"+p.Name)
		var env []string
		if p == l.Operator {
			path = filepath.Join(l.Dir, p.Name)
			if len(l.Replicas) > 0 {
				env = l.HvctlEnv(l.Replicas[0])
			}
		}
		if err := os.WriteFile(path, []byte(l.enterScript(p, env)), 0o755); err != nil {
			return nil, fmt.Errorf("script for %s: %w", p.Name, err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

func (l *Lab) enterScript(p *Place, env []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "#!/bin/bash\n# Runs a command, or a shell, in %s (%s) of this lab.\n", p.Name, p.Addr)
	fmt.Fprintf(&b, "export PATH=%q:\"$PATH\" debian_chroot=%q\n", l.opts.Bin, p.Name)
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		fmt.Fprintf(&b, "export %s=%q\n", name, value)
	}
	fmt.Fprintf(&b, "exec nsenter --target %d --mount --uts --ipc --pid --net=%s -- \"${@:-bash}\"\n", p.first.Load(), p.netns)
	return b.String()
}
