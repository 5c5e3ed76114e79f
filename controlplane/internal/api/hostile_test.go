package api_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/debvisor/debvisor/certs"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

// wire is a connection of HTTP/2 that is written frame by frame, as no decent
// client does.
type wire struct {
	t      testing.TB
	conn   net.Conn
	framer *http2.Framer
	next   uint32

	mu      sync.Mutex
	answers map[uint32]chan string
	ended   chan struct{}
}

// wire connects as a principal.
func (r *replica) wire(name string) *wire {
	r.t.Helper()
	files := r.issue(name, certs.ClientLeaf(name, 0))
	own, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		r.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(r.ca.Certificate())
	conn, err := (&tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{own}, ServerName: "127.0.0.1", NextProtos: []string{"h2"},
	}}).DialContext(r.t.Context(), "tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	w := &wire{t: r.t, conn: conn, framer: http2.NewFramer(conn, conn), next: 1, answers: map[uint32]chan string{}, ended: make(chan struct{})}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		r.t.Fatal(err)
	}
	if err := w.framer.WriteSettings(); err != nil {
		r.t.Fatal(err)
	}
	go w.read()
	r.t.Cleanup(func() {
		_ = conn.Close() // the server may have closed it long ago
		<-w.ended
	})
	return w
}

// read takes, and never acknowledges, the server's frames until the connection ends, and gives those
// who wait for a stream its gRPC status, or what ended it instead.
func (w *wire) read() {
	defer close(w.ended)
	dec := hpack.NewDecoder(4096, nil)
	for {
		f, err := w.framer.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			fields, err := dec.DecodeFull(f.HeaderBlockFragment())
			if err != nil {
				return
			}
			for _, field := range fields {
				if field.Name == "grpc-status" {
					w.answer(f.StreamID, field.Value)
				}
			}
			if f.StreamEnded() {
				w.answer(f.StreamID, "no status")
			}
		case *http2.RSTStreamFrame:
			w.answer(f.StreamID, "reset")
		}
	}
}

func (w *wire) answer(stream uint32, status string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ch := w.answers[stream]; ch != nil {
		ch <- status // it has room for one, and is taken out at once
		delete(w.answers, stream)
	}
}

// headers encodes the head of a gRPC call.
func headers(path string) []byte {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{
		{":method", "POST"},
		{":scheme", "https"},
		{":path", path},
		{":authority", "127.0.0.1"},
		{"content-type", "application/grpc"},
		{"te", "trailers"},
	} {
		_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}) // to memory
	}
	return block.Bytes()
}

// call makes a call with an empty message and gives what it came to.
func (w *wire) call(path string) string {
	w.t.Helper()
	stream := w.next
	w.next += 2
	answered := make(chan string, 1)
	w.mu.Lock()
	w.answers[stream] = answered
	w.mu.Unlock()
	err := errors.Join(
		w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: headers(path), EndHeaders: true}),
		w.framer.WriteData(stream, true, make([]byte, 5)),
	)
	if err != nil {
		return "connection ended"
	}
	select {
	case status := <-answered:
		return status
	case <-w.ended:
		return "connection ended"
	case <-time.After(10 * time.Second):
		w.t.Fatalf("%q: no answer", path)
		return ""
	}
}

// manglings are paths that are not a method's, and look as if they were.
func manglings(service, method string) []string {
	real := "/" + service + "/" + method
	lower := strings.ToLower(real)
	return []string{
		real[1:], "/" + real, "//" + service + "//" + method, real + "/", real + "//", real + "/x", "/x" + real,
		"/./" + real[1:], "/../" + real[1:], "/" + service + "/./" + method, "/" + service + "/x/../" + method,
		real + "?", real + "?x=1", real + "#", real + ";", real + "%20", "/" + service + "%2f" + method, "%2f" + real[1:],
		strings.ReplaceAll(real, ".", "%2e"), "/" + service + "\\" + method, real + " ", " " + real, real + "\x00", real + "\n",
		lower, strings.ToUpper(real), "/" + service + "." + method, "/" + strings.TrimPrefix(service, "debvisor.") + "/" + method,
		"https://127.0.0.1" + real, "*" + real, real[:len(real)-1], real + "\u200b", "/" + service + "/" + method + method, "", "/", "//", "/" + service,
	}
}

// TestMangledPathsReachNoHandler asks, as one who may do everything, for each
// method by paths that are not quite its own.
func TestMangledPathsReachNoHandler(t *testing.T) {
	r := start(t, 1_000_000)
	r.lead()
	methods := map[string]bool{}
	for service, info := range r.server.GetServiceInfo() {
		for _, m := range info.Methods {
			methods["/"+service+"/"+m.Name] = true
		}
	}
	if len(methods) < 45 {
		t.Fatalf("only %d methods found", len(methods))
	}
	w, sent := r.wire("operator"), 0
	for real := range methods {
		service, method, _ := strings.Cut(real[1:], "/")
		for _, path := range manglings(service, method) {
			if methods[path] {
				continue // another method's own
			}
			status := w.call(path)
			sent++
			if status == "0" {
				t.Errorf("%q is answered", path)
			}
			if status == "connection ended" {
				w = r.wire("operator")
			}
		}
	}
	if sent < 30*len(methods) {
		t.Fatalf("only %d paths tried for %d methods", sent, len(methods))
	}
	// The way itself works: what the log must not hold of the mangled ones, it
	// holds of this.
	if status := w.call(debvisorv1.NodeService_ListNodes_FullMethodName); status != "0" {
		t.Fatalf("a proper call came to %s", status)
	}
	r.events("rpc_result", 1)
	raw, err := os.ReadFile(filepath.Join(r.dir, "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		for real := range methods {
			if strings.Contains(line, `"method":"`+real+`"`) && real != debvisorv1.NodeService_ListNodes_FullMethodName {
				t.Errorf("a mangled path was taken for %s: %s", real, line)
			}
		}
	}
}

// floods are what a hostile client writes; each ends when the connection does.
func floods() map[string]func(w *wire) error {
	return map[string]func(*wire) error{
		"rapid reset": func(w *wire) error {
			for range 20_000 {
				id := w.next
				w.next += 2
				if err := errors.Join(
					w.framer.WriteHeaders(http2.HeadersFrameParam{
						StreamID: id, BlockFragment: headers(debvisorv1.NodeService_ListNodes_FullMethodName), EndHeaders: true,
					}),
					w.framer.WriteRSTStream(id, http2.ErrCodeCancel),
				); err != nil {
					return err
				}
			}
			return nil
		},
		"continuation": func(w *wire) error {
			var block bytes.Buffer
			enc := hpack.NewEncoder(&block)
			if err := w.framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: 1, BlockFragment: headers(debvisorv1.NodeService_ListNodes_FullMethodName),
			}); err != nil {
				return err
			}
			for i := range 100_000 {
				block.Reset()
				_ = enc.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 1000+i%7), Sensitive: true})
				if err := w.framer.WriteContinuation(1, false, block.Bytes()); err != nil {
					return err
				}
			}
			return nil
		},
		"one-byte data": func(w *wire) error { return drip(w, []byte{0}) },
		"empty data":    func(w *wire) error { return drip(w, nil) },
		"ping": func(w *wire) error {
			for i := range 200_000 {
				var data [8]byte
				binary.BigEndian.PutUint64(data[:], uint64(i))
				if err := w.framer.WritePing(false, data); err != nil {
					return err
				}
			}
			return nil
		},
		"settings": func(w *wire) error {
			for i := range 200_000 {
				if err := w.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(65535 + i%2)}); err != nil {
					return err
				}
			}
			return nil
		},
		"priority": func(w *wire) error {
			for i := range uint32(200_000) {
				if err := w.framer.WritePriority(2*i+1, http2.PriorityParam{StreamDep: 0, Weight: 1}); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// drip opens as many streams as it may and sends a message of 1 MiB on each,
// in frames of that content.
func drip(w *wire, content []byte) error {
	const streams = rpc.MaxStreams
	prefix := []byte{0, 0, 0x10, 0, 0}
	for range streams {
		id := w.next
		w.next += 2
		if err := errors.Join(
			w.framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, BlockFragment: headers(debvisorv1.NodeService_ListNodes_FullMethodName), EndHeaders: true,
			}),
			w.framer.WriteData(id, false, prefix),
		); err != nil {
			return err
		}
	}
	for i := range 200_000 {
		if err := w.framer.WriteData(w.next-2*uint32(1+i%streams), false, content); err != nil {
			return err
		}
	}
	return nil
}

// TestHTTP2Floods writes what no client should: nothing breaks, memory stays
// bounded, and a decent caller is served all the while.
func TestHTTP2Floods(t *testing.T) {
	r := start(t, 1_000_000)
	r.lead()
	decent := debvisorv1.NewNodeServiceClient(r.principal("operator"))
	for name, flood := range floods() {
		t.Run(name, func(t *testing.T) {
			before := heap()
			var over atomic.Bool
			served, peak := make(chan int, 1), uint64(0)
			go func() {
				n := 0
				defer func() { served <- n }()
				for !over.Load() {
					if !answered(t, decent) {
						return
					}
					n++
				}
			}()
			w := r.wire("hostile")
			flooded := make(chan error, 1)
			go func() { flooded <- flood(w) }()
			deadline := time.After(5 * time.Second)
			look := time.NewTicker(50 * time.Millisecond)
			defer look.Stop()
		flooding:
			for {
				select {
				case err := <-flooded:
					t.Logf("the flood ended with: %v", err)
					break flooding
				case <-deadline:
					_ = w.conn.Close()
				case <-look.C:
					peak = max(peak, heap())
				}
			}
			peak = max(peak, heap())
			over.Store(true)
			if n := <-served; n == 0 {
				t.Error("the decent caller was never served")
			} else {
				t.Logf("%d calls served meanwhile; the heap grew by %d KiB", n, (max(peak, before)-before)>>10)
			}
			if peak > before+64<<20 {
				t.Errorf("the heap grew from %d to %d MiB", before>>20, peak>>20)
			}
			answered(t, decent)
		})
	}
}

// answered makes one call of a decent caller.
func answered(t *testing.T, nodes debvisorv1.NodeServiceClient) bool {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := nodes.ListNodes(ctx, &debvisorv1.Empty{}); err != nil {
		t.Errorf("a decent caller is not served: %v", err)
		return false
	}
	return true
}

// heap is what this process, which is server and client, holds in memory.
func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}
