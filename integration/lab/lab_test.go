package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// ownerEnv makes the test's binary the owner of a lab with a running guest instead: it prints "<directory> <janitor's pid>"
// and then waits to be killed.
const ownerEnv = "DEBVISOR_LAB_TEST_OWNER"

func TestMain(m *testing.M) {
	if base := os.Getenv(ownerEnv); base != "" {
		if err := own(base); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func own(base string) error {
	l, err := New(context.Background(), Options{Replicas: 1, Nodes: 1, Machines: 1, Base: base})
	if err != nil {
		return err
	}
	if _, err := l.Nodes[0].StartGuest(context.Background(), GuestSpec{Name: "g", Disks: []DiskSpec{{Kind: DiskDevice}}}); err != nil {
		return errors.Join(err, l.Close())
	}
	fmt.Println(l.Dir, l.janitor.Process.Pid)
	select {}
}

// base makes a directory for labs on a real file system that only this test uses.
func base(t *testing.T) string {
	dir, err := os.MkdirTemp(DefaultBase, "lab-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // QEMU runs as a user of its own
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Not RemoveAll: a lab that is left here is a failure.
		if err := os.Remove(dir); err != nil {
			t.Errorf("left over: %v", err)
		}
	})
	return dir
}

// outside is what a lab could have changed of the machine.
func outside(t *testing.T) []string {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	state := []string{string(mounts)}
	for _, pattern := range []string{"/sys/class/net/*", "/run/netns/*", "/run/libvirt/*", "/etc/libvirt/*", "/var/lib/libvirt/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		state = append(state, found...)
	}
	return state
}

// gone waits until nothing of a lab is left.
func gone(t *testing.T, dir string) {
	t.Helper()
	err := Within(20*time.Second, "lab is gone", func() error {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %w", dir, err)
		}
		all, _ := filepath.Glob("/proc/[0-9]*")
		for _, p := range all {
			// Everything of a lab has its directory in its arguments or sees its file systems.
			cmdline, _ := os.ReadFile(p + "/cmdline")
			mounts, _ := os.ReadFile(p + "/mounts")
			if strings.Contains(string(cmdline), dir) || strings.Contains(string(mounts), filepath.Base(dir)) {
				return fmt.Errorf("process %s is left: %q", p, cmdline)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestTwoLabsAtOnce(t *testing.T) {
	before, where := outside(t), base(t)
	labs := make([]*Lab, 2)
	for i := range labs {
		l, err := New(t.Context(), Options{Replicas: 1, Nodes: 2, Base: where})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		labs[i] = l
	}
	for _, l := range labs {
		g, err := l.Nodes[0].StartGuest(t.Context(), GuestSpec{Name: "same", UUID: "11111111-2222-4333-8444-555555555555"})
		if err != nil {
			t.Fatal(err)
		}
		h, err := g.History()
		if err := errors.Join(err, h.Check(nil)); err != nil || len(h) == 0 {
			t.Errorf("%d records: %v", len(h), err)
		}
		for n, want := range map[*Node]DomainState{l.Nodes[0]: DomainRunning, l.Nodes[1]: DomainAbsent} {
			d, err := n.Domain(g.UUID)
			qemus, err2 := n.QEMUs(g.UUID)
			if err := errors.Join(err, err2); err != nil || d.State != want || (len(qemus) == 1) != (want == DomainRunning) {
				t.Errorf("%s: VM is %+v with processes %v, want it %s: %v", n.Name, d, qemus, want, err)
			}
			for _, q := range qemus {
				if q.UID == 0 {
					t.Errorf("QEMU of %s runs as root", n.Name)
				}
			}
		}
	}
	for _, l := range labs {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		gone(t, l.Dir)
	}
	if diff := cmp.Diff(before, outside(t)); diff != "" {
		t.Errorf("the machine has changed:\n%s", diff)
	}
}

func TestKilledOwnerLeavesNothing(t *testing.T) {
	for _, janitorToo := range []bool{false, true} {
		t.Run(fmt.Sprintf("janitor too %t", janitorToo), func(t *testing.T) {
			where := base(t)
			owner := exec.CommandContext(t.Context(), "/proc/self/exe")
			owner.Env = append(os.Environ(), ownerEnv+"="+where)
			owner.Stderr = os.Stderr
			out, err := owner.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := owner.Start(); err != nil {
				t.Fatal(err)
			}
			var dir string
			var janitor int
			if _, err := fmt.Fscan(bufio.NewReader(out), &dir, &janitor); err != nil {
				t.Fatal(err)
			}
			if owners, err := Owners(where); err != nil || len(owners) != 1 || owners[0].Pid != owner.Process.Pid {
				t.Errorf("owners are %+v, %v", owners, err)
			}
			if err := Sweep(t.Context(), where); err != nil { // must not touch a living lab
				t.Error(err)
			}
			if janitorToo {
				if err := syscall.Kill(janitor, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			if err := owner.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = owner.Wait() // it was killed
			if janitorToo {
				if err := Sweep(t.Context(), where); err != nil {
					t.Error(err)
				}
			}
			gone(t, dir)
			noLoops(t, dir)
		})
	}
}
