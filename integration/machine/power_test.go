package machine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// own boots a machine for a test that kills its owner, and stays.
func own() {
	m, err := Boot(context.Background(), Spec{Name: "owned", Disks: []Disk{{MiB: 64}}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(m.spec.Dir)
	select {}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %q: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// mentioning returns the processes that have a word in their arguments.
func mentioning(word string) []string {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var found []string
	for _, path := range all {
		if raw, err := os.ReadFile(path); err == nil && bytes.Contains(raw, []byte(word)) {
			found = append(found, filepath.Base(filepath.Dir(path)))
		}
	}
	return found
}

// TestMachineLosesPowerInMidWrite: what was committed when the power went is there when it is back, whole, and the pool needs no
// force to be imported.
func TestMachineLosesPowerInMidWrite(t *testing.T) {
	m := boot(t, Spec{Name: "m", Disks: []Disk{{MiB: 512}}})
	run(t, m, "zpool", "create", "-O", "compression=off", "tank", "/dev/ubda")
	for round := range 2 {
		reader, writer := io.Pipe()
		script := fmt.Sprintf(`for i in $(seq 1000); do f=%d-$i
head -c 2000000 /dev/urandom >/tank/$f && sum=$(sha256sum </tank/$f) && zfs snapshot tank@$f && echo "$f $sum"; done`, round)
		p, err := m.Start(t.Context(), Command{Args: []string{"sh", "-c", script}, Stdout: writer})
		if err != nil {
			t.Fatal(err)
		}
		var said []string
		for in := bufio.NewScanner(reader); len(said) < 3 && in.Scan(); {
			said = append(said, in.Text())
		}
		go func() { _, _ = io.Copy(io.Discard, reader) }()
		if err := m.PowerOff(); err != nil {
			t.Fatal(err)
		}
		if <-p.Done(); !errors.Is(p.Err(), ErrOff) || m.On() {
			t.Fatalf("the writer ended with %v, the machine is on: %t", p.Err(), m.On())
		}
		if _, err := m.Run(t.Context(), "true"); !errors.Is(err, ErrOff) {
			t.Errorf("a command without power: %v", err)
		}
		if err := m.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		run(t, m, "zpool", "import", "-d", "/dev", "tank")
		for _, line := range said {
			name, sum, _ := strings.Cut(line, " ")
			if got := run(t, m, "sh", "-c", "sha256sum <'/tank/.zfs/snapshot/"+name+"/"+name+"'"); got != strings.TrimSpace(sum) {
				t.Errorf("snapshot %s holds %s, want %s", name, got, sum)
			}
		}
		run(t, m, "zpool", "scrub", "-w", "tank")
		if got := run(t, m, "zpool", "status", "-x", "tank"); got != "pool 'tank' is healthy" {
			t.Errorf("after round %d: %s", round, got)
		}
	}
}

// TestMachineCrashes: a kernel that panics takes the machine's power, and all that runs in it.
func TestMachineCrashes(t *testing.T) {
	m := boot(t, Spec{Name: "m", MemoryMiB: 192})
	in, button := io.Pipe()
	p, err := m.Start(t.Context(), Command{Args: []string{"sh", "-c", "read -r _; echo c >/proc/sysrq-trigger; sleep 1000"}, Stdin: in})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := button.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if <-p.Done(); !errors.Is(p.Err(), ErrOff) {
		t.Errorf("what ran in it ended with %v", p.Err())
	}
	eventually(t, "the machine is off", func() error {
		if m.On() {
			return errors.New("it is on")
		}
		return nil
	})
	if said := tail(m.Log()); !strings.Contains(said, "Kernel panic") {
		t.Errorf("its console: %s", said)
	}
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, m, "zfs", "version")
}

func TestMachineStandsStill(t *testing.T) {
	m := boot(t, Spec{Name: "m"})
	if err := m.Pause(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if out, err := m.Run(ctx, "true"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a machine that stands still ran a command: %q, %v", out, err)
	}
	if err := m.Continue(); err != nil {
		t.Fatal(err)
	}
	if got := run(t, m, "echo", "on"); got != "on" {
		t.Errorf("after it went on: %q", got)
	}
}

func TestMachineProcesses(t *testing.T) {
	m := boot(t, Spec{Name: "m"})
	p, err := m.Start(t.Context(), Command{Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if !p.Alive() || p.Err() != nil || p.Pid <= 1 {
		t.Errorf("a process that runs: alive %t, %v, pid %d", p.Alive(), p.Err(), p.Pid)
	}
	if err := p.Kill(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	var exit *ExitError
	if !errors.As(p.Err(), &exit) || exit.Status != 128+int(syscall.SIGTERM) {
		t.Errorf("a process that was terminated ended with %v", p.Err())
	}
	if _, err := m.Run(t.Context(), "no-such-program"); err == nil || !strings.Contains(err.Error(), "no such program") {
		t.Errorf("a program that is not there: %v", err)
	}
	// Cancelling kills the children as well.
	ctx, cancel := context.WithCancel(t.Context())
	said, told := io.Pipe()
	go func() {
		_, _ = bufio.NewReader(said).ReadString('\n')
		cancel()
	}()
	err = m.RunCommand(ctx, Command{Args: []string{"sh", "-c", "sleep 1234 & echo started; wait"}, Stdout: told})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a command that was cancelled: %v", err)
	}
	eventually(t, "the child is gone", func() error {
		out, err := m.Run(t.Context(), "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 123[4]' || true")
		if err == nil && strings.TrimSpace(out) != "0" {
			err = fmt.Errorf("%s of them", out)
		}
		return err
	})
	var out bytes.Buffer
	sent := strings.Repeat("0123456789\n", 50000)
	if err := m.RunCommand(t.Context(), Command{Args: []string{"cat"}, Stdin: strings.NewReader(sent), Stdout: &out}); err != nil || out.String() != sent {
		t.Errorf("cat gave %d bytes for %d: %v", out.Len(), len(sent), err)
	}
	if got := len(run(t, m, "head", "-c", "3000000", "/dev/zero")); got != 3000000 {
		t.Errorf("%d bytes of output, want 3000000", got)
	}
}

func TestMachineEndsWithItsOwner(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), mustExecutable())
	cmd.Env = append(os.Environ(), selfEnv+"=owner")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dir, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	dir = strings.TrimSpace(dir)
	if len(mentioning(dir)) < 2 { // keeper and kernel
		t.Errorf("its processes are %v", mentioning(dir))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	eventually(t, "nothing is left", func() error {
		if left := mentioning(dir); len(left) > 0 {
			return fmt.Errorf("processes %v", left)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %w", dir, err)
		}
		return nil
	})
}

func TestMachineFilesAndDirectories(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "host"), []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := boot(t, Spec{Name: "m", Shared: []string{dir}, Files: map[string]string{"/etc/hosts": "127.0.0.1 localhost\n10.0.0.1 other\n"}})
	if got := run(t, m, "cat", dir+"/host", "/etc/hosts"); got != "of the host127.0.0.1 localhost\n10.0.0.1 other" {
		t.Errorf("it reads %q", got)
	}
	run(t, m, "sh", "-c", "echo inside >"+dir+"/inside && sync")
	if raw, err := os.ReadFile(filepath.Join(dir, "inside")); err != nil || string(raw) != "inside\n" {
		t.Errorf("the host reads %q, %v", raw, err)
	}
	run(t, m, "sh", "-c", "echo own >/etc/own; mkdir /own /var/lib/debvisor/own; touch /root/own /tmp/own; ! touch /usr/own")
	for _, path := range []string{"/etc/own", "/own", "/root/own", "/tmp/own"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("the host has %s", path)
		}
	}
}

func TestMachineDials(t *testing.T) {
	m := boot(t, Spec{Name: "m"})
	_, err := m.DialContext(t.Context(), "tcp", "127.0.0.1:8080")
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("nobody listens: %v", err)
	}
	server, err := m.Start(t.Context(), Command{Args: []string{"busybox", "httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/etc"}})
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: m.DialContext}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	eventually(t, "the server in the machine answers", func() error {
		resp, err := client.Get("http://127.0.0.1:8080/hostname")
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if raw, err := io.ReadAll(resp.Body); err != nil || string(raw) != "m\n" {
			t.Errorf("it says %q, %v", raw, err)
		}
		return nil
	})
	if err := server.Kill(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	<-server.Done()
}
