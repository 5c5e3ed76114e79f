package scratch

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// prefixEnv makes this test program make a directory with that prefix, say where, and hold it until its standard input ends.
const prefixEnv = "SCRATCH_TEST_PREFIX"

func TestMain(m *testing.M) {
	if prefix := os.Getenv(prefixEnv); prefix != "" {
		d, err := Make(prefix)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(d.Path)
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0) // without removing it
	}
	os.Exit(m.Run())
}

// age makes a directory one that is not just being made.
func age(t *testing.T, dir string) {
	t.Helper()
	if err := os.Chtimes(dir, time.Time{}, time.Now().Add(-2*settled)); err != nil {
		t.Fatal(err)
	}
}

// TestWhatAKilledOwnerLeft is removed by the next one; what a living owner has, or somebody else, is not.
func TestWhatAKilledOwnerLeft(t *testing.T) {
	prefix := fmt.Sprintf("debvisor-scratch-%d-", os.Getpid())
	owner := exec.CommandContext(t.Context(), os.Args[0])
	owner.Env = append(os.Environ(), prefixEnv+"="+prefix)
	held, err := owner.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 4096)
	n, err := out.Read(said)
	if err != nil {
		t.Fatal(err)
	}
	theirs := strings.TrimSpace(string(said[:n]))
	foreign, err := os.MkdirTemp(base, prefix) // no lock: not ours to judge
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(foreign) }()
	age(t, theirs)
	age(t, foreign)
	there := func(what string, want bool, dirs ...string) {
		t.Helper()
		d, err := Make(prefix)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range append(dirs, d.Path) {
			if _, err := os.Stat(dir); os.IsNotExist(err) == (want || dir == d.Path) {
				t.Errorf("%s: whether %s is there: %v", what, dir, err)
			}
		}
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(d.Path); !os.IsNotExist(err) {
			t.Errorf("%s: removed, and there: %v", what, err)
		}
	}
	there("its owner lives", true, theirs, foreign)
	_ = owner.Process.Kill()
	_ = owner.Wait()
	_ = held.Close()
	there("its owner is dead", false, theirs)
	there("nobody's", true, foreign)
	if left, _ := filepath.Glob(filepath.Join(base, prefix+"*")); len(left) != 1 {
		t.Errorf("left are %v", left)
	}
}

func TestPrefixes(t *testing.T) {
	for _, prefix := range []string{"", "a/b", "*", "../x"} {
		if d, err := Make(prefix); err == nil {
			t.Errorf("%q was taken: %s", prefix, d.Path)
		}
	}
}
