package tunnel

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// resident is how much memory a process has, in bytes.
func resident(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no VmRSS of %d", pid)
	return 0
}

// TestAReaderThatStallsStopsTheWriter has nobody read what is sent: the writer is
// stopped, the two children keep their size, and nothing is lost.
func TestAReaderThatStallsStopsTheWriter(t *testing.T) {
	p := newPair(t)
	source, target := p.both()
	l, err := net.Listen("unix", target.layout.memory())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	out, err := net.Dial("unix", source.layout.memory())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	before := resident(t, source.pid()) + resident(t, target.pid())

	const most = 64 << 20 // what two sockets of TCP and of unix, and our buffers, may hold
	piece := make([]byte, 1<<20)
	_, _ = rand.Read(piece)
	sent := 0
	for stalled := false; !stalled; {
		_ = out.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := out.Write(piece)
		sent += n
		stalled = errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil && !stalled {
			t.Fatal(err)
		}
		if sent > most {
			t.Fatalf("%d bytes were taken though nobody reads", sent)
		}
	}
	if grown := resident(t, source.pid()) + resident(t, target.pid()) - before; grown > 24<<20 {
		t.Errorf("the children grew by %d bytes", grown)
	}
	t.Logf("%d bytes on their way", sent)

	done := make(chan int64, 1)
	go func() {
		got, _ := io.Copy(io.Discard, in)
		done <- got
	}()
	_ = out.SetWriteDeadline(time.Time{})
	for range 128 {
		n, err := out.Write(piece)
		sent += n
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := out.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got != int64(sent) {
		t.Errorf("%d bytes sent, %d arrived", sent, got)
	}
	if grown := resident(t, source.pid()) + resident(t, target.pid()) - before; grown > 32<<20 {
		t.Errorf("after %d bytes the children have grown by %d", sent, grown)
	}
}

// TestParallelConnections carries as many streams at once as QEMU may open, and
// notes the arrival when the last is whole.
func TestParallelConnections(t *testing.T) {
	p := newPair(t)
	source, target := p.both()
	l, err := net.Listen("unix", target.layout.memory())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	const streams = 17
	var here, there [streams]net.Conn
	for i := range streams {
		if here[i], err = net.Dial("unix", source.layout.memory()); err != nil {
			t.Fatal(err)
		}
		if there[i], err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = errors.Join(here[i].Close(), there[i].Close()) }()
	}
	for i := range streams {
		if !target.Arrived().IsZero() {
			t.Fatalf("arrived after %d of %d streams", i, streams)
		}
		if _, err := here[i].Write([]byte("end")); err != nil {
			t.Fatal(err)
		}
		if err := here[i].(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(there[i]); err != nil || string(got) != "end" {
			t.Fatalf("stream %d: %q, %v", i, got, err)
		}
	}
	eventually(t, "the arrival is noted", func() bool { return !target.Arrived().IsZero() })
}

// TestTheMainStreamComesFirst has QEMU's other streams come before its main one, as
// they do on a busy machine: QEMU would take the first of them for it.
func TestTheMainStreamComesFirst(t *testing.T) {
	p := newPair(t)
	p.in.Parallel = true
	source, target := p.both()
	l, err := net.Listen("unix", target.layout.memory())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, says := range []string{"\x11\x22\x33\x44 one", "\x11\x22\x33\x44 two", mainMagic + " main"} {
		conn, err := net.Dial("unix", source.layout.memory())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if _, err := conn.Write([]byte(says)); err != nil {
			t.Fatal(err)
		}
		if says[0] != mainMagic[0] { // it is through the tunnel before the next begins
			if err := l.(*net.UnixListener).SetDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%q is let through before the main stream: %v", says, err)
			}
		}
	}
	if err := l.(*net.UnixListener).SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		got := make([]byte, len(mainMagic))
		if _, err := io.ReadFull(conn, got); err != nil || (string(got) == mainMagic) != (i == 0) {
			t.Errorf("connection %d begins with %q, %v", i, got, err)
		}
	}
}

// TestSocketsAreWhose checks who may use the sockets of the source.
func TestSocketsAreWhose(t *testing.T) {
	p := newPair(t)
	p.out.QEMUUser, p.out.QEMUGroup = os.Getuid(), os.Getgid()
	source, _ := p.both()
	for _, c := range []channel{libvirtChannel, memoryChannel, diskChannel, copyChannel} {
		at, err := os.Stat(source.layout.socket(c))
		if err != nil || at.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", c, at, err)
		}
	}
	at, err := os.Stat(source.layout.io())
	if err != nil || at.Mode().Perm() != 0o711 {
		t.Errorf("io: %v, %v", at, err)
	}
	if got, want := source.DisksURI(), "unix://"+source.layout.dir+"/io/nbd.sock"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestCopyGoesBetweenTheAgents connects the two agents, also after the target's
// has been started anew.
func TestCopyGoesBetweenTheAgents(t *testing.T) {
	p := newPair(t)
	source, target := p.both()
	for range 2 {
		l, err := target.ListenCopy(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		far := make(chan net.Conn, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
			}
			far <- c
		}()
		near, err := source.DialCopy(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		there := <-far
		go func() { _, _ = near.Write([]byte("hello")); _ = near.Close() }()
		if got, err := io.ReadAll(there); err != nil || string(got) != "hello" {
			t.Errorf("%q, %v", got, err)
		}
		_ = there.Close()
		l.(*net.UnixListener).SetUnlinkOnClose(false) // as if the agent had been killed
		_ = l.Close()
	}
}
