package accessfile_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
)

// write puts a file in the place of another, as of that time.
func write(t *testing.T, path, content string, at time.Time) {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(next, at, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

func principals(p *accessfile.Policy) string {
	var names []string
	for name := range p.Principals {
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

// TestRun follows a file through its changes: what is whole comes into force
// within 2 s, what is broken does not, and each is told of once.
func TestRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.yaml")
	synctest.Test(t, func(t *testing.T) {
		old := time.Now().Add(-time.Hour)
		write(t, path, "principals: {a: {}}", old)
		var mu sync.Mutex
		var told []string
		f, err := accessfile.Open(accessfile.Config{
			Path: path, Log: hclog.NewNullLogger(),
			Accept: func(next *accessfile.Policy) error {
				if len(next.Principals) == 0 {
					return errors.New("nobody is left")
				}
				return nil
			},
			Tell: func(taken *accessfile.Policy, refused error) {
				mu.Lock()
				defer mu.Unlock()
				if refused != nil {
					told = append(told, strings.ReplaceAll(refused.Error(), path, "F"))
				} else {
					told = append(told, principals(taken))
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		expect := func(inForce string, tell ...string) {
			t.Helper()
			time.Sleep(7 * time.Second) // some looks
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if got := principals(f.Current()); got != inForce {
				t.Errorf("%q is in force, want %q", got, inForce)
			}
			if strings.Join(told, "|") != strings.Join(tell, "|") {
				t.Errorf("told of %q, want %q", told, tell)
			}
			told = nil
		}
		first := f.Current()
		expect("a")
		changed := f.Changed()
		write(t, path, "principals: {b: {}}", old.Add(time.Minute))
		expect("b", "b")
		select {
		case <-changed:
		default:
			t.Error("the change was not signalled")
		}
		if first.Version == f.Current().Version {
			t.Error("two contents have one version")
		}
		write(t, path, "principals: {c: {}}", old.Add(time.Minute)) // same size, same time, another file
		expect("c", "c")
		same := f.Current()
		write(t, path, "principals: {c: {}}", old.Add(2*time.Minute))
		expect("c")
		if f.Current() != same {
			t.Error("the same content is another policy")
		}
		write(t, path, "principals:\n  d: {}\n  d: {}", old.Add(3*time.Minute))
		expect("c", `F:3: "d" is in principals twice, first in line 2`)
		if err := f.Reload(); err == nil {
			t.Error("a broken file was reloaded")
		}
		expect("c", `F:3: "d" is in principals twice, first in line 2`)
		write(t, path, "roles: {}", old.Add(4*time.Minute))
		expect("c", "F: nobody is left")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		expect("c", "F: it cannot be read: no such file or directory")
		// One that changes again within the grain of its time.
		soon := time.Now().Add(time.Hour)
		write(t, path, "principals: {e: {}}", soon)
		expect("e", "e")
		if err := os.WriteFile(path, []byte("principals: {f: {}}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, soon, soon); err != nil {
			t.Fatal(err)
		}
		expect("f", "f")
		if err := os.Chmod(path, 0o602); err != nil {
			t.Fatal(err)
		}
		expect("f", "F: anyone on this host can write to it (mode 0602); chmod o-w it")
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, produce := range map[string]func(string) error{
		"missing: it cannot be read: no such file or directory": func(string) error { return nil },
		"dir: it is not a regular file":                         func(p string) error { return os.Mkdir(p, 0o700) },
		"pipe: it is not a regular file":                        func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"large: it has more than 1048576 bytes":                 func(p string) error { return os.WriteFile(p, make([]byte, accessfile.MaxBytes+1), 0o600) },
		"broken:2: it is no YAML: did not find expected ',' or ']'": func(p string) error {
			return os.WriteFile(p, []byte("roles:\n  [a\n"), 0o600)
		},
	} {
		file, _, _ := strings.Cut(name, ":")
		if err := produce(at(file)); err != nil {
			t.Fatal(err)
		}
		if _, err := accessfile.Open(accessfile.Config{Path: at(file)}); err == nil || err.Error() != at("")+"/"+name {
			t.Errorf("got %v, want %s", err, name)
		}
	}
	f, err := accessfile.Open(accessfile.Config{})
	if err != nil || len(f.Current().Principals) != 0 || f.Reload() != nil {
		t.Errorf("without a file: %v", err)
	}
}
