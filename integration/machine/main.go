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
	flag.Parse()
	if Inside() || outside() {
		os.Exit(m.Run())
	}
	status, err := runInside(s, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests in a machine:", err)
	}
	os.Exit(status)
}

// outside tells that the flags ask for what needs no machine.
func outside() bool {
	return flag.Lookup("test.fuzz").Value.String() != "" || flag.Lookup("test.list").Value.String() != ""
}

// bounded ends after what the tests may take. They end by themselves then, and say where they were: this is for a machine that hangs.
func bounded() (context.Context, context.CancelFunc) {
	if limit, ok := flag.Lookup("test.timeout").Value.(flag.Getter).Get().(time.Duration); ok && limit > 0 {
		return context.WithTimeout(context.Background(), limit+20*time.Second)
	}
	return context.WithCancel(context.Background())
}

// bootFor boots a machine for this test program, which has to have that environment and directory in it.
func bootFor(ctx context.Context, s Spec, prepare func(context.Context, *Machine) error) (m *Machine, env []string, dir string, err error) {
	if dir, err = os.Getwd(); err != nil {
		return nil, nil, "", err
	}
	s.Shared = append(slices.Clone(s.Shared), writtenDirs()...)
	s.Visible = append(slices.Clone(s.Visible), moduleOf(dir))
	s.pinned = true
	if m, err = Boot(ctx, s); err != nil {
		return nil, nil, "", err
	}
	if prepare != nil {
		if err := prepare(ctx, m); err != nil {
			return nil, nil, "", errors.Join(fmt.Errorf("preparing %s: %w", m.Name(), err), m.Close())
		}
	}
	env = slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "PATH=") || strings.HasPrefix(e, "HOME=") || strings.HasPrefix(e, "TMPDIR=")
	})
	return m, slices.Clip(env), dir, nil
}

// closeAfter closes a machine once the host has what was written in it, which go test wants to read.
func closeAfter(ctx context.Context, m *Machine) (err error) {
	if m.On() {
		_, err = m.Run(ctx, "sync")
	}
	return errors.Join(err, m.Close())
}

// runInside returns the status that the tests ended with.
func runInside(s Spec, prepare func(context.Context, *Machine) error) (int, error) {
	ctx, cancel := bounded()
	defer cancel()
	m, env, dir, err := bootFor(ctx, s, prepare)
	if err != nil {
		return 1, err
	}
	args := append([]string{mustExecutable()}, os.Args[1:]...)
	err = m.RunCommand(ctx, Command{Args: args, Env: env, Dir: dir, Stdout: os.Stdout, Stderr: os.Stderr})
	status := 0
	var exit *ExitError
	switch {
	case errors.As(err, &exit):
		status, err = exit.Status, nil
	case err != nil:
		status, err = 1, fmt.Errorf("%w; the machine's console: %s", err, tail(m.Log()))
	}
	if err = errors.Join(err, closeAfter(ctx, m)); err != nil && status == 0 {
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
