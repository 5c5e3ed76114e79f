package audit

import (
	"bytes"
	"compress/gzip"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/shared/auditlog"
)

// open opens a log on disk; stop ends it.
func open(t testing.TB, cfg Config) (l *Log, stop func()) {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Replica == "" {
		cfg.Replica = "r1"
	}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Logf("the log ended: %v", err)
		}
	})
	t.Cleanup(stop)
	return l, stop
}

// change makes a change: an event that must be on disk.
func change(t testing.TB, l *Log, name string) {
	t.Helper()
	if err := tryChange(l, name); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func tryChange(l *Log, name string) error {
	if !l.Add(&Event{Time: time.Now(), Kind: Call, Principal: "p", Method: "/s/" + name}) {
		return ErrFull
	}
	return l.Sync(context.Background())
}

// logFile gives a path for a log.
func logFile(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "audit.log")
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// isWhole checks files of a log, oldest first, with its end.
func isWhole(t testing.TB, head auditlog.Head, files ...string) auditlog.Report {
	t.Helper()
	r := check(t, head, files...)
	if !r.Whole() {
		t.Errorf("not whole: %+v", r)
	}
	return r
}

func check(t testing.TB, head auditlog.Head, files ...string) auditlog.Report {
	t.Helper()
	var v auditlog.Verifier
	v.Expect(head, "the test")
	for _, name := range files {
		f, err := auditlog.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		err = v.File(name, f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return v.End()
}

// methods gives the names of the changes in what a log has, in order.
func methods(t testing.TB, content []byte) []string {
	t.Helper()
	var names []string
	for line := range bytes.Lines(content) {
		l, err := auditlog.Parse(bytes.TrimSuffix(line, []byte{'\n'}))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if l.Event == string(Call) {
			names = append(names, strings.TrimPrefix(l.Method, "/s/"))
		}
	}
	return names
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		if so() {
			return
		}
	}
	t.Fatalf("not in 10 s: %s", what)
}

// within fails the test if something takes longer than a second and a bit.
func within(t testing.TB, what string, do func()) {
	t.Helper()
	began := time.Now()
	do()
	if took := time.Since(began); took > 1300*time.Millisecond {
		t.Errorf("%s took %s", what, took)
	}
}

// tmpfs mounts a small file system.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts a tmpfs: it needs root, as all of our tests do")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill fills the rest of a file system.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for size := 1 << 20; size > 0; size /= 2 {
		for err = error(nil); err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// syslogd is a syslog: it keeps what it is sent.
type syslogd struct {
	path string
	conn *net.UnixConn
	mu   sync.Mutex
	got  []string
}

func startSyslog(t *testing.T) *syslogd {
	t.Helper()
	dir, err := os.MkdirTemp("", "syslog") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	s := &syslogd{path: filepath.Join(dir, "log")}
	if s.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.conn.Close()
		_ = os.RemoveAll(dir)
	})
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := s.conn.Read(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.got = append(s.got, string(b[:n]))
			s.mu.Unlock()
		}
	}()
	return s
}

// lines gives the audit log's lines that it has got.
func (s *syslogd) lines() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b []byte
	for _, message := range s.got {
		_, line, _ := strings.Cut(message, "]: ")
		b = append(b, line+"\n"...)
	}
	return b
}

// must is a shortcut for what a test needs done.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// loggedTo gives a logger whose output is read by the function.
func loggedTo() (hclog.Logger, func() string) {
	var mu sync.Mutex
	var b bytes.Buffer
	return hclog.New(&hclog.LoggerOptions{Output: writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return b.Write(p)
		})}), func() string {
			mu.Lock()
			defer mu.Unlock()
			return b.String()
		}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func gzipped(t testing.TB, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(content)
	must(t, err)
	must(t, w.Close())
	return b.Bytes()
}
