package gateway

import (
	"bytes"
	"crypto/tls"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/debvisor/debvisor/shared/rpc"
)

// rawFrames is a connection that speaks HTTP/2 by hand.
func (r *rig) rawFrames() (*http2.Framer, *tls.Conn) {
	r.t.Helper()
	conn, err := tls.Dial("tcp", r.Addr().String(), &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: r.clients, ServerName: "127.0.0.1", NextProtos: []string{"h2"},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		r.t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	if err := f.WriteSettings(); err != nil {
		r.t.Fatal(err)
	}
	return f, conn
}

// block is the header block of a request.
func block(method, path string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, h := range [][2]string{{":method", method}, {":scheme", "https"}, {":authority", "x"}, {":path", path}, {"content-type", "application/json"}} {
		_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}) // a buffer takes all
	}
	return b.Bytes()
}

func TestHTTP2Settings(t *testing.T) {
	r := newRig(t)
	f, _ := r.rawFrames()
	frame, err := f.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	settings, ok := frame.(*http2.SettingsFrame)
	if !ok {
		t.Fatalf("first frame: %v", frame)
	}
	if n, _ := settings.Value(http2.SettingMaxConcurrentStreams); n != rpc.MaxStreams {
		t.Errorf("%d streams", n)
	}
	if n, _ := settings.Value(http2.SettingMaxHeaderListSize); n == 0 || n > 3*rpc.MaxHeaderBytes {
		t.Errorf("%d bytes of headers", n)
	}
}

// TestRapidReset opens and resets streams as fast as it can: others are served
// meanwhile, and nothing of it stays.
func TestRapidReset(t *testing.T) {
	r := newRig(t)
	f, conn := r.rawFrames()
	go func() { // what it is answered is not waited for
		for {
			if _, err := f.ReadFrame(); err != nil {
				return
			}
		}
	}()
	other := r.client("ada", true)
	r.do(other, r.request(http.MethodGet, "/v1/vms/web", ""))
	for id := uint32(1); id < 10_000; id += 2 {
		err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(http.MethodGet, "/v1/vms/web"), EndHeaders: true, EndStream: true})
		if err == nil {
			err = f.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		if err != nil { // the server may end it
			t.Logf("ended after %d streams: %v", id/2, err)
			break
		}
		if id%1001 == 0 {
			if resp, body := r.do(other, r.request(http.MethodGet, "/v1/vms/web", "")); resp.StatusCode != http.StatusOK {
				t.Errorf("another caller meanwhile: %s: %s", resp.Status, body)
			}
		}
	}
	_ = conn.Close() // it may have been closed by the other side
	if resp, body := r.do(other, r.request(http.MethodGet, "/v1/vms/web", "")); resp.StatusCode != http.StatusOK {
		t.Errorf("another caller after it: %s: %s", resp.Status, body)
	}
	eventually(t, "one connection is left", func() bool {
		d := r.door()
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.now == 1
	})
}

// TestSlowBodyOverHTTP2 sends a byte and then nothing: its stream is answered and
// the connection goes on.
func TestSlowBodyOverHTTP2(t *testing.T) {
	r := newRig(t, impatient)
	f, _ := r.rawFrames()
	send := func(id uint32, body string, end bool) {
		t.Helper()
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block(http.MethodPost, "/v1/vms/web:migrate"), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		if err := f.WriteData(id, end, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	// status waits for the header of a stream's answer.
	status := func(id uint32) string {
		t.Helper()
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			switch frame := frame.(type) {
			case *http2.SettingsFrame:
				if !frame.IsAck() {
					if err := f.WriteSettingsAck(); err != nil {
						t.Fatal(err)
					}
				}
			case *http2.PingFrame:
				if err := f.WritePing(true, frame.Data); err != nil {
					t.Fatal(err)
				}
			case *http2.MetaHeadersFrame:
				if frame.StreamID == id {
					return frame.PseudoValue("status")
				}
			}
		}
	}
	send(1, "{", false)
	if got := status(1); got != "408" {
		t.Errorf("a body that does not come is answered %s", got)
	}
	send(3, "{}", true)
	if got := status(3); got != "200" {
		t.Errorf("the next request on the connection: %s", got)
	}
}
