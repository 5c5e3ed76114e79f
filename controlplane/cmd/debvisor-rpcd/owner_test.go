package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/debvisor/debvisor/controlplane/internal/members"
)

// TestWrapKeyOfTheServiceManager: a key that systemd has loaded is taken, unless the environment says another; none is no mistake.
func TestWrapKeyOfTheServiceManager(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("RPC_WRAP_KEY_FILE", "")
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if got := wrapKeyFile(); got != "" {
		t.Errorf("no service manager: %q", got)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if got := wrapKeyFile(); got != "" {
		t.Errorf("no key was loaded: %q", got)
	}
	key := filepath.Join(dir, "wrap.key")
	if err := os.WriteFile(key, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := wrapKeyFile(); got != key {
		t.Errorf("a key was loaded: %q", got)
	}
	if got, _ := (&settings{}).final(); got.WrapKey != key {
		t.Errorf("a key was loaded, and serve takes %q", got.WrapKey)
	}
	if got, _ := (&settings{home: members.Home{WrapKey: "/said"}}).final(); got.WrapKey != "/said" {
		t.Errorf("the configuration says another, and serve takes %q", got.WrapKey)
	}
	t.Setenv("RPC_WRAP_KEY_FILE", "/elsewhere")
	if got := wrapKeyFile(); got != "/elsewhere" {
		t.Errorf("the environment says another: %q", got)
	}
}

// TestOwnDirectoryNeedsNoOther: nobody becomes anybody for a directory of his own, nor for one that is not there.
func TestOwnDirectoryNeedsNoOther(t *testing.T) {
	dir, uid := t.TempDir(), os.Geteuid()
	for _, d := range []string{dir, filepath.Join(dir, "none")} {
		if err := becomeOwner(d); err != nil || os.Geteuid() != uid {
			t.Errorf("%s: %v, user %d", d, err, os.Geteuid())
		}
	}
}

// TestGiven: what root has filled becomes whose the directory was.
func TestGiven(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, 64001, 64002); err != nil {
		t.Fatal(err)
	}
	of, err := ownerOf(dir)
	if err != nil || of != (owner{64001, 64002}) {
		t.Fatalf("%v, %v", of, err)
	}
	file := filepath.Join(dir, "pki", "ca.pem")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := of.give(dir); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Dir(file), file} {
		if got, err := ownerOf(path); err != nil || got != of {
			t.Errorf("%s is %v's, %v", path, got, err)
		}
	}
}
