package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
)

func (p *pair) reloader(node string) *certs.Reloader {
	p.t.Helper()
	r, err := certs.NewReloader(p.files(node), hclog.NewNullLogger())
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// streams listens as node b for what a sends by the right.
func (p *pair) streams(right string, port int) *Streams {
	p.t.Helper()
	s, err := ListenStreams(p.t.Context(), StreamsConfig{
		StreamRight: StreamRight{ID: right, Cluster: "testing", Peer: "a", Certificates: p.reloader("b")},
		Host:        "127.0.0.1", FirstPort: 17500, LastPort: 17549, Port: port, Log: hclog.NewNullLogger(),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(s.Close)
	return s
}

// TestStreams: the right's source gets in, in the place of its former connection;
// nobody else does; where it listened it listens again.
func TestStreams(t *testing.T) {
	p := newPair(t)
	s := p.streams("r-1", 0)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	right := StreamRight{ID: "r-1", Cluster: "testing", Peer: "b", Certificates: p.reloader("a")}
	for range 2 {
		first, err := DialStream(ctx, s.Address(), right)
		if err != nil {
			t.Fatal(err)
		}
		in, err := s.Accept(ctx)
		if err != nil {
			t.Fatal(err)
		}
		second, err := DialStream(ctx, s.Address(), right)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.Read(make([]byte, 1)); err == nil {
			t.Error("the former connection goes on")
		}
		in, err = s.Accept(ctx)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = second.Write([]byte("hello")) }()
		if got, err := io.ReadAll(io.LimitReader(in, 5)); string(got) != "hello" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		_, _ = first.Close(), second.Close()
		port := s.Port()
		s.Close()
		s = p.streams("r-1", port)
	}
	for name, stranger := range map[string]StreamRight{
		"another right": {ID: "r-2", Cluster: "testing", Peer: "b", Certificates: p.reloader("a")},
		"another node":  {ID: "r-1", Cluster: "testing", Peer: "b", Certificates: p.reloader("c")},
	} {
		before, _ := s.Refused()
		conn, err := DialStream(ctx, s.Address(), stranger)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: let in", name)
		}
		_ = conn.Close()
		if n, last := s.Refused(); n != before+1 || last == "" {
			t.Errorf("%s: refused %d, %q", name, n, last)
		}
	}
	if _, err := DialStream(ctx, s.Address(), StreamRight{ID: "r-1", Cluster: "testing", Peer: "c", Certificates: p.reloader("a")}); err == nil {
		t.Error("another target than was asked for")
	}
}

// TestManyDials: of connections that nobody has accepted yet only the last counts,
// and no other is kept.
func TestManyDials(t *testing.T) {
	p := newPair(t)
	s := p.streams("r-1", 0)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	right := StreamRight{ID: "r-1", Cluster: "testing", Peer: "b", Certificates: p.reloader("a")}
	current := func() *handed {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.current
	}
	var last net.Conn
	for range 5 {
		before := current()
		conn, err := DialStream(ctx, s.Address(), right)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		// Which of two is the later one goes by when the target is through with them.
		eventually(t, "the target takes it", func() bool { return current() != before })
		if last != nil {
			if err := last.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := last.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) { // it is closed once the next is there
				t.Fatalf("the former connection goes on: %v", err)
			}
		}
		last = conn
	}
	in, err := s.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := last.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(io.LimitReader(in, 5)); string(got) != "hello" || err != nil {
		t.Errorf("accepted another than the last: %q, %v", got, err)
	}
}
