package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// command runs the program's command line in this process.
func command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRootCmd()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestInitThenClient(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	out, err := command(t, "init", "--data-dir", dir, "--cluster", "lab", "--name", "r1", "--host", "10.0.0.1", "--host", "rpc.example.org")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cluster lab made", "operator.pem", "debvisor-rpcd serve --data-dir " + dir} {
		if !strings.Contains(out, want) {
			t.Errorf("init does not say %q: %s", want, out)
		}
	}
	if _, err := command(t, "init", "--data-dir", dir); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a second init: %v", err)
	}
	if _, err := command(t, "client", "--data-dir", dir, "--name", "ci", "--out", filepath.Join(dir, "ci")); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"ci/ci.pem", "ci/ci-key.pem", "ci/ca.pem"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := command(t, "client", "--data-dir", dir, "--name", "agent:node-1", "--out", dir); err == nil {
		t.Error("a client certificate in an agent's name")
	}
}

func TestInitWithAWrapKeyOfItsOwn(t *testing.T) {
	dir, key := t.TempDir(), filepath.Join(t.TempDir(), "wrap")
	if _, err := command(t, "init", "--data-dir", dir, "--wrap-key-file", key); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(key); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "pki", "wrap.key")); err == nil {
		t.Error("the wrap key lies beside what it seals")
	}
	if _, err := command(t, "client", "--data-dir", dir, "--name", "ci", "--out", t.TempDir()); err == nil {
		t.Error("the CA's key opens without its wrap key")
	}
	if _, err := command(t, "client", "--data-dir", dir, "--name", "ci", "--out", t.TempDir(), "--wrap-key-file", key); err != nil {
		t.Error(err)
	}
}

func TestJoinRefusesBeforeItAsks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("dvj_nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"dvj_nonsense", "@" + file} {
		_, err := command(t, "join", "--data-dir", t.TempDir(), "--server", "127.0.0.1:1", "--token", token)
		if err == nil || !strings.Contains(err.Error(), "not a join token") {
			t.Errorf("%s: %v", token, err)
		}
	}
	if _, err := command(t, "join", "--data-dir", t.TempDir()); err == nil || !strings.Contains(err.Error(), `"server"`) {
		t.Errorf("no server: %v", err)
	}
}
