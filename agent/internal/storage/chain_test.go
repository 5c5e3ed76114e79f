package storage

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// TestChain has qemu-img make images over images.
func TestChain(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Fatal("no qemu-img; .ci/deps installs it")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	create := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("qemu-img", append([]string{"create", "-q", "-f", "qcow2"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	create(at("secret"), "1M")
	create("-b", at("secret"), "-F", "qcow2", at("guest"), "1M") // a guest can write such a thing into its raw disk
	create("-b", "guest", "-F", "raw", at("base"), "1M")
	create("-b", at("base"), "-F", "qcow2", "-o", "compat=0.10", at("old"), "1M")
	create("-b", "old", "-F", "qcow2", at("top"), "1M")
	create(at("loop"), "1M")
	if out, err := exec.Command("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", at("loop"), at("loop")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, want := range map[string][]string{"top": {"old", "base", "guest"}, "secret": nil, "none": nil} {
		var got []string
		for _, image := range Chain(at(name)) {
			got = append(got, filepath.Base(image))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s is over %v, want %v", name, got, want)
		}
	}
	if got := Chain(at("loop")); len(got) != maxChain {
		t.Errorf("a loop has %d images", len(got))
	}
}
