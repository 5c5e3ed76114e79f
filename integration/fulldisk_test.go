package integration

import (
	"context"
	"crypto/tls"
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

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// disk mounts a small file system of its own below the replica's directory.
func (l *lone) disk(name, size string) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", path, "tmpfs", 0, "size="+size); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = syscall.Unmount(path, syscall.MNT_DETACH) })
	return path
}

// tls is the operator's configuration towards the replica.
func (l *lone) tls() *tls.Config {
	l.t.Helper()
	pki := filepath.Join(l.data(), "pki")
	own, err := certs.NewReloader(certs.Files{
		CA: filepath.Join(pki, "ca.pem"), Cert: filepath.Join(pki, "operator.pem"), Key: filepath.Join(pki, "operator-key.pem"),
	}, hclog.NewNullLogger())
	if err != nil {
		l.t.Fatal(err)
	}
	return own.ReplicaClient("127.0.0.1")
}

// argument is what the replica is told with a flag.
func (l *lone) argument(flag string) string {
	var value string
	for i, arg := range l.args {
		if arg == flag {
			value = l.args[i+1]
		}
	}
	return value
}

// ready asks /readyz.
func (l *lone) ready() (status int, body string, err error) {
	config := l.tls()
	config.NextProtos = nil
	client := http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	req, err := http.NewRequestWithContext(l.t.Context(), http.MethodGet, "https://"+l.argument("--metrics-listen")+"/readyz", nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), err
}

func (l *lone) await(what string, f func() error) {
	l.t.Helper()
	if err := lab.Within(time.Minute, what, f); err != nil {
		l.t.Fatal(err)
	}
}

// running starts the replica, which ends with the test, and connects to it.
func (l *lone) running() *grpc.ClientConn {
	l.t.Helper()
	cmd := exec.Command(l.bin, append([]string{"serve"}, l.args...)...) // it ends with the test
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			l.t.Errorf("its end: %v", err)
		}
	})
	l.await("it is ready", l.isReady(http.StatusOK, "ready"))
	conn, err := grpc.NewClient(l.argument("--listen"), grpc.WithTransportCredentials(credentials.NewTLS(l.tls())))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// isReady wants /readyz to answer so.
func (l *lone) isReady(want int, says string) func() error {
	return func() error {
		status, body, err := l.ready()
		if err == nil && (status != want || !strings.Contains(body, says)) {
			err = fmt.Errorf("%d %q", status, body)
		}
		return err
	}
}

// fills has a disk of a replica that runs filled and emptied: the replica says why it is not ready, refuses changes with the code,
// and answers reads.
func (l *lone) fills(fill func(filler string), filler, says, code string) {
	l.t.Helper()
	t, conn := l.t, l.running()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	change := func() error {
		_, err := debvisorv1.NewAccessServiceClient(conn).SetPrincipal(ctx, &debvisorv1.Principal{Name: "vera", Type: "user", Roles: []string{"viewer"}})
		return err
	}
	l.await("a change is made", change)
	fill(filler)
	l.await("a change is refused", func() error {
		if e := errdefs.FromStatus(change()); e == nil || e.Kind != errdefs.Unavailable || e.Code != code {
			return fmt.Errorf("the change: %w", e)
		}
		return nil
	})
	l.await("it is not ready, and says why", l.isReady(http.StatusServiceUnavailable, says))
	if _, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(ctx, &debvisorv1.Empty{}); err != nil {
		t.Errorf("a read while the disk is full: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	l.await("changes are made again", change)
	l.await("it is ready again", l.isReady(http.StatusOK, "ready"))
}

// TestFullDisk fills the audit log's disk under a replica that runs: it says so, refuses changes and answers reads until there is
// room again.
func TestFullDisk(t *testing.T) {
	l := newLone(t)
	small := l.disk("small", "256k")
	l.with("--audit-log", filepath.Join(small, "audit.log")).fills(func(filler string) {
		if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); err == nil {
			t.Fatal("the disk is not full")
		}
	}, filepath.Join(small, "filler"), "audit: the audit log cannot be written", "AUDIT_UNAVAILABLE")
}

// TestFillingDataDirectory takes the room on etcd's own disk from under a replica that runs, before etcd is without any.
func TestFillingDataDirectory(t *testing.T) {
	l := newLone(t)
	small := l.disk("small", "320m")
	data := filepath.Join(small, "d")
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", l.data(), data).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l.with("--data-dir", data).fills(func(filler string) {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(small, &fs); err != nil {
			t.Fatal(err)
		}
		left := int64(fs.Bavail) * fs.Bsize
		file, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = file.Close() }()
		if err := syscall.Fallocate(int(file.Fd()), 0, 0, left-32<<20); err != nil {
			t.Fatal(err)
		}
	}, filepath.Join(small, "filler"), "disk: the disk of the data directory is almost full", "DISK_FULL")
}

// TestFullDataDirectory starts a replica whose own disk is full.
func TestFullDataDirectory(t *testing.T) {
	l := newLone(t)
	tiny := l.disk("tiny", "32m")
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", l.data(), filepath.Join(tiny, "d")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l.with("--data-dir", filepath.Join(tiny, "d")).refuses(time.Minute, tiny, "full", "make room")
}
