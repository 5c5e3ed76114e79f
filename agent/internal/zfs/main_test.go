package zfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/machine"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// tank is the pool that all tests share, each in a dataset of its own.
const tank = "tank"

// TestMain runs the tests in a machine with a pool.
func TestMain(m *testing.M) {
	if machine.Inside() {
		if err := exec.Command("zpool", "create", "-O", "compression=lz4", "-O", "mountpoint=none", tank, "/dev/ubda").Run(); err != nil {
			fmt.Fprintln(os.Stderr, "no pool:", err)
			os.Exit(1)
		}
	}
	machine.Main(m, machine.Spec{Name: "zfs", MemoryMiB: 900, Disks: []machine.Disk{{MiB: 1500}}})
}

// raw runs a command without the package that is tested.
func raw(t *testing.T, args ...string) string {
	t.Helper()
	var out, complaint bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		t.Fatalf("%q: %v: %s", args, err, complaint.String())
	}
	return strings.TrimSpace(out.String())
}

// room makes a file system for a test, mounted, that goes with it.
func room(t *testing.T) (z *ZFS, dataset string) {
	t.Helper()
	dataset = tank + "/" + strings.ReplaceAll(t.Name(), "/", "_")
	raw(t, "zfs", "create", "-o", "mountpoint="+t.TempDir(), dataset)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		snapshots, _ := exec.CommandContext(ctx, "zfs", "list", "-Hrt", "snapshot", "-o", "name,userrefs", dataset).Output()
		for line := range strings.Lines(string(snapshots)) {
			if name, refs, _ := strings.Cut(strings.TrimSpace(line), "\t"); refs != "0" {
				held, _ := exec.CommandContext(ctx, "zfs", "holds", "-H", name).Output()
				for hold := range strings.Lines(string(held)) {
					_ = exec.CommandContext(ctx, "zfs", "release", strings.Split(hold, "\t")[1], name).Run()
				}
			}
		}
		if out, err := exec.CommandContext(ctx, "zfs", "destroy", "-R", dataset).CombinedOutput(); err != nil {
			t.Errorf("cleaning %s: %v: %s", dataset, err, out)
		}
	})
	return New(Config{}), dataset
}

// noise writes random content into a file of a mounted dataset, mebibytes of it,
// the same for the same seed.
func noise(t *testing.T, dataset, name string, mebibytes int, seed uint64) {
	t.Helper()
	write(t, filepath.Join(raw(t, "zfs", "get", "-Ho", "value", "mountpoint", dataset), name), mebibytes, seed)
}

func write(t *testing.T, path string, mebibytes int, seed uint64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var key [32]byte
	key[0] = byte(seed)
	if _, err := io.CopyN(f, rand.NewChaCha8(key), int64(mebibytes)<<20); err != nil {
		t.Fatal(err)
	}
}

func guidOf(t *testing.T, name string) uint64 {
	t.Helper()
	var n uint64
	if _, err := fmt.Sscan(raw(t, "zfs", "get", "-Hpo", "value", "guid", name), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func ref(t *testing.T, snapshot string) Ref {
	t.Helper()
	dataset, name, _ := strings.Cut(snapshot, "@")
	return Ref{Dataset: dataset, Name: name, GUID: guidOf(t, snapshot)}
}

// exists tells whether there is such a dataset, snapshot or bookmark.
func exists(t *testing.T, name string) bool {
	t.Helper()
	return exec.Command("zfs", "list", "-t", "all", name).Run() == nil
}

// refused demands an error of a kind with a code, that names the dataset.
func refused(t *testing.T, err error, kind errdefs.Kind, code, dataset string) {
	t.Helper()
	var e *errdefs.Error
	switch {
	case !errors.As(err, &e):
		t.Errorf("the error is %v, want %v %s", err, kind, code)
	case e.Kind != kind || e.Code != code || !strings.HasPrefix(e.Context["dataset"], dataset):
		t.Errorf("the error is %v %s %v of %q, want %v %s of %q", e.Kind, e.Code, e.Message, e.Context["dataset"], kind, code, dataset)
	}
}

// fine ends the test at an error.
func fine(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// nobodyAbout demands that soon no command is at work on the dataset.
func nobodyAbout(t *testing.T, dataset string) {
	t.Helper()
	var found []string
	if !soon(10*time.Second, func() bool {
		found = nil
		all, err := filepath.Glob("/proc/[0-9]*/cmdline")
		fine(t, err)
		for _, name := range all {
			if line, err := os.ReadFile(name); err == nil && bytes.Contains(line, []byte(dataset)) && bytes.Contains(line, []byte("zfs")) {
				found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
			}
		}
		return len(found) == 0
	}) {
		t.Errorf("commands are left: %q", found)
	}
}

// soon looks again and again, until it is so or that time is over.
func soon(within time.Duration, is func() bool) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(within); !is(); {
		select {
		case <-tick.C:
		case <-deadline:
			return false
		}
	}
	return true
}
