package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/integration/lab"
)

// lone is a replica of its own cluster on this host's loopback, without a lab: for starts that cannot be.
type lone struct {
	t    *testing.T
	bin  string
	dir  string
	args []string
	env  []string
}

// newLone makes a replica that has not started.
func newLone(t *testing.T) *lone {
	t.Helper()
	bin := os.Getenv("DEBVISOR_BIN")
	if bin == "" {
		bin = "../bin"
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "debvisor-lone-") // short: a socket is in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l := &lone{t: t, bin: filepath.Join(bin, "debvisor-rpcd"), dir: dir}
	address := freeAddress(t)
	l.args = []string{
		"--data-dir", l.data(), "--listen", freeAddress(t), "--agents-listen", freeAddress(t), "--metrics-listen", freeAddress(t),
		"--audit-log", filepath.Join(dir, "audit.log"), "--log-file", filepath.Join(dir, "rpcd.log"), "--audit-syslog", "none",
	}
	if out, err := exec.CommandContext(t.Context(), l.bin, "init", "--data-dir", l.data(), "--name", "r1", "--etcd-peer-listen", address).CombinedOutput(); err != nil {
		t.Fatalf("init: %v: %s", err, out)
	}
	return l
}

func (l *lone) data() string { return filepath.Join(l.dir, "d") }

// freeAddress is one of the loopback that nothing listens on now.
func freeAddress(t *testing.T) string {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	return lis.Addr().String()
}

// with is the replica with more arguments; later ones win.
func (l *lone) with(args ...string) *lone {
	other := *l
	other.args = append(append([]string(nil), l.args...), args...)
	return &other
}

// run starts the replica and waits for its end, or until it has told a service manager that it is ready.
func (l *lone) run(limit time.Duration) (said string, code int, ready bool) {
	l.t.Helper()
	path := filepath.Join(l.dir, "notify")
	_ = os.Remove(path)
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = manager.Close() }()
	ctx, cancel := context.WithTimeout(l.t.Context(), limit)
	defer cancel()
	told := make(chan bool, 1)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := manager.Read(b)
			if err != nil {
				told <- false
				return
			}
			if strings.Contains(string(b[:n]), "READY=1") {
				told <- true
				cancel() // it need not go on
				return
			}
		}
	}()
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, l.bin, append([]string{"serve"}, l.args...)...)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "NOTIFY_SOCKET=" + path}, l.env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	_ = cmd.Run()
	_ = manager.Close()
	return output.String(), cmd.ProcessState.ExitCode(), <-told
}

// refuses expects one line that says all of want, a failure, and that it was never ready.
func (l *lone) refuses(limit time.Duration, want ...string) {
	l.t.Helper()
	said, code, ready := l.run(limit)
	if ready || code <= 0 {
		l.t.Errorf("it started, or was ended (status %d): %s", code, said)
	}
	line := strings.TrimSuffix(said, "\n")
	if line == "" || strings.Contains(line, "\n") || strings.Contains(said, "goroutine") {
		l.t.Errorf("it says not one line: %s", said)
	}
	for _, w := range want {
		if !strings.Contains(said, w) {
			l.t.Errorf("%q does not say %q", line, w)
		}
	}
}

// foreignPair makes an operator's own certificate for the callers' listener.
func foreignPair(t *testing.T, dir, name string, life time.Duration, issued time.Time) certs.Files {
	t.Helper()
	ca, err := certs.NewAuthority("foreign", time.Now().Add(-1000*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Issue(key.Public(), certs.ServerLeaf("foreign", "r1", nil, life), issued)
	if err != nil {
		t.Fatal(err)
	}
	f := certs.Files{CA: filepath.Join(dir, name+"-ca.pem"), Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+"-key.pem")}
	for path, content := range map[string][]byte{f.CA: ca.PEM(), f.Cert: leaf, f.Key: keyPEM} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// TestBadStarts starts real replicas that cannot serve: each says why in one line, and what to do.
func TestBadStarts(t *testing.T) {
	l := newLone(t)
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	now := time.Now()
	fine := foreignPair(t, l.dir, "fine", time.Hour, now)
	other := foreignPair(t, l.dir, "other", time.Hour, now)
	expired := foreignPair(t, l.dir, "expired", time.Hour, now.Add(-3*time.Hour))
	future := foreignPair(t, l.dir, "future", time.Hour, now.Add(48*time.Hour))
	garbage := filepath.Join(l.dir, "garbage.pem")
	if err := os.WriteFile(garbage, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	tls := func(f certs.Files, key string) *lone {
		return l.with("--tls-cert", f.Cert, "--tls-key", key, "--tls-ca", f.CA)
	}
	for name, c := range map[string]struct {
		start *lone
		want  []string
	}{
		"callers' port in use":        {l.with("--listen", taken.Addr().String()), []string{"--listen", taken.Addr().String(), "in use"}},
		"metrics port in use":         {l.with("--metrics-listen", taken.Addr().String()), []string{"--metrics-listen", "in use"}},
		"peers' port in use":          {l.with("--etcd-peer-listen", taken.Addr().String()), []string{taken.Addr().String(), "in use"}},
		"a key that is no file":       {tls(fine, l.dir), []string{l.dir, "directory"}},
		"a key that is none":          {tls(fine, garbage), []string{"garbage.pem"}},
		"another's key":               {tls(fine, other.Key), []string{"other-key.pem", "does not match"}},
		"an expired certificate":      {tls(expired, expired.Key), []string{"expired.pem", "expired on", "issue a new one"}},
		"a clock that is behind":      {tls(future, future.Key), []string{"future.pem", "valid from", "set the clock"}},
		"no etcd there":               {l.with("--etcd-endpoints", "unix://"+filepath.Join(l.dir, "no.sock")), []string{"no.sock", "--etcd-endpoints"}},
		"an audit log in a directory": {l.with("--audit-log", l.dir), []string{l.dir}},
		"a replica that is nowhere":   {l.with("--data-dir", filepath.Join(l.dir, "nowhere")), []string{"nowhere"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.start.t = t
			c.start.refuses(90*time.Second, c.want...)
		})
	}
	if said, _, ready := l.run(time.Minute); !ready {
		t.Errorf("what was refused has left something behind: the replica does not start: %s", said)
	}
}

// TestNewerData starts a replica on what a newer one has left.
func TestNewerData(t *testing.T) {
	l := newLone(t)
	if said, _, ready := l.run(time.Minute); !ready {
		t.Fatalf("it does not start: %s", said)
	}
	l.setSchema("99")
	l.refuses(time.Minute, "99")
	db := filepath.Join(l.data(), "etcd", "data", "member", "snap", "db")
	for _, v := range []struct{ bucket, key, now string }{
		{"cluster", "clusterVersion", "3.99.0"}, // whether etcd may run
		{"meta", "storageVersion", "3.99.0"},    // whether it can read its files
	} {
		newer(t, db, v.bucket, v.key, v.now)
		l.refuses(time.Minute, "newer", "restore a backup")
	}
}

// setSchema writes the version of the records, past the control plane, while the replica runs.
func (l *lone) setSchema(version string) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.bin, append([]string{"serve"}, l.args...)...)
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	socket := filepath.Join(l.data(), "etcd", "client.sock")
	err := lab.Eventually(ctx, "the schema is written", func() error {
		cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, DialTimeout: time.Second, Logger: zap.NewNop()})
		if err != nil {
			return err
		}
		defer func() { _ = cli.Close() }()
		asking, done := context.WithTimeout(ctx, 2*time.Second)
		defer done()
		if was, err := cli.Get(asking, keyPrefix+"schema"); err != nil || was.Count != 1 {
			return fmt.Errorf("not yet: %w", errors.Join(err, errors.New("no schema")))
		}
		_, err = cli.Put(asking, keyPrefix+"schema", version)
		return err
	})
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait()
	if err != nil {
		l.t.Fatal(err)
	}
}

// newer makes etcd's database one of a newer etcd.
func newer(t *testing.T, path, bucket, key, version string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(key), []byte(version)) }); err != nil {
		t.Fatal(err)
	}
}
