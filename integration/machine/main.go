package machine

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Main is a TestMain for tests that need ZFS: outside of a machine it boots one and runs this very test program in it, with the same
// arguments, environment and working directory; its output and its status are passed through. Inside it runs the tests. So "go
// test" works on a host without ZFS. Only fuzzing, which is to be of things that need no ZFS, stays outside.
func Main(m *testing.M, s Spec) {
	if Inside() {
		os.Exit(m.Run())
	}
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() != "" || flag.Lookup("test.list").Value.String() != "" {
		os.Exit(m.Run())
	}
	status, err := runInside(s)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests in a machine:", err)
	}
	os.Exit(status)
}

// runInside returns the status that the tests ended with.
func runInside(s Spec) (int, error) {
	ctx := context.Background()
	if limit, ok := flag.Lookup("test.timeout").Value.(flag.Getter).Get().(time.Duration); ok && limit > 0 {
		// The tests inside end by themselves then, and say where they were. This is for a machine that hangs.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit+20*time.Second)
		defer cancel()
	}
	dir, err := os.Getwd()
	if err != nil {
		return 1, err
	}
	s.Shared = append(slices.Clone(s.Shared), writtenDirs()...)
	s.Visible = append(slices.Clone(s.Visible), moduleOf(dir))
	m, err := Boot(ctx, s)
	if err != nil {
		return 1, err
	}
	args := append([]string{mustExecutable()}, os.Args[1:]...)
	env := slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "PATH=") || strings.HasPrefix(e, "HOME=") || strings.HasPrefix(e, "TMPDIR=")
	})
	err = m.RunCommand(ctx, Command{Args: args, Env: env, Dir: dir, Stdout: os.Stdout, Stderr: os.Stderr})
	status := 0
	var exit *ExitError
	switch {
	case errors.As(err, &exit):
		status, err = exit.Status, nil
	case err != nil:
		status, err = 1, fmt.Errorf("%w; the machine's console: %s", err, tail(m.Log()))
	}
	if m.On() {
		_, synced := m.Run(ctx, "sync") // what go test wants to read of it
		err = errors.Join(err, synced)
	}
	if err = errors.Join(err, m.Close()); err != nil && status == 0 {
		status = 1
	}
	return status, err
}

// moduleOf returns the root of the module that a directory is in, or the directory itself.
func moduleOf(dir string) string {
	for at := dir; at != "/"; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
			return at
		}
	}
	return dir
}

// writtenDirs are the directories that the flags of go test have a test program write to, if there are any.
func writtenDirs() []string {
	var dirs []string
	for _, name := range []string{
		"test.coverprofile", "test.testlogfile", "test.cpuprofile", "test.memprofile", "test.blockprofile", "test.mutexprofile", "test.trace",
	} {
		if path := flag.Lookup(name).Value.String(); filepath.IsAbs(path) {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	for _, name := range []string{"test.outputdir", "test.gocoverdir"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != "" {
			dirs = append(dirs, f.Value.String())
		}
	}
	return dirs
}

func mustExecutable() string {
	path, err := os.Executable()
	if err != nil {
		panic(err) // Linux has /proc
	}
	return path
}
