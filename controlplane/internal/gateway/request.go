package gateway

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

const (
	// bodyTimeout is how long a body may take to arrive.
	bodyTimeout = 10 * time.Second
	// maxBodies is how much all bodies that are being worked on may hold, bytes.
	maxBodies = 64 << 20
	// maxBodiesOfOne is how much of that those from one address may hold, so
	// that nobody, whom nobody knows yet, keeps all others out.
	maxBodiesOfOne = 8 << 20
	// headerCost is what each header is counted as besides name and value, as
	// HTTP/2 does.
	headerCost = 32
	// innerHeaders is what gRPC itself adds to what is passed on, at most, bytes.
	innerHeaders = 1 << 10
)

// passedOn are the headers that become metadata. The trace id is another, made
// or found by rpc.PickTrace, and the trace context, where it is well formed.
func passedOn() []string { return []string{"authorization", "debvisor-request-id", "debvisor-wait"} }

// headers checks the headers of a request and gives what is passed on of them.
func headers(r *http.Request, trace string) (metadata.MD, error) {
	size := len(r.Method) + len(r.RequestURI) + len(r.Host)
	for name, values := range r.Header {
		for _, value := range values {
			size += len(name) + len(value) + headerCost
		}
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "debvisor-") && lower != rpc.TraceHeader && !slices.Contains(passedOn(), lower) {
			return nil, errdefs.New(errdefs.InvalidArgument, "UNKNOWN_HEADER",
				"header %s is not known; there are Debvisor-Request-Id, Debvisor-Wait and Debvisor-Trace-Id", clip(name)).With("header", clip(name))
		}
	}
	md := metadata.Pairs(rpc.TraceHeader, trace)
	inner := innerHeaders
	if parent := rpc.PickParent(r.Header.Values); parent != "" {
		inner += len(rpc.TraceParent) + len(parent) + headerCost
		md.Append(rpc.TraceParent, parent)
	}
	for _, name := range passedOn() {
		for _, value := range r.Header.Values(name) {
			if strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c > '~' }) {
				return nil, errdefs.New(errdefs.InvalidArgument, "INVALID_HEADER",
					"header %s has characters that are not printable ASCII", textproto.CanonicalMIMEHeaderKey(name)).With("header", name)
			}
			inner += len(name) + len(value) + headerCost
			md.Append(name, value)
		}
	}
	if max(size, inner) > rpc.MaxHeaderBytes {
		return nil, &refusal{http.StatusRequestHeaderFieldsTooLarge, errdefs.New(errdefs.InvalidArgument, "HEADERS_TOO_LARGE",
			"the headers have more than %d bytes", rpc.MaxHeaderBytes)}
	}
	return md, nil
}

// parameters reads the query.
func parameters(r *http.Request) (url.Values, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "INVALID_QUERY", "the query cannot be read: %s", clip(err.Error()))
	}
	return values, nil
}

// bodies reads requests' bodies, within a limit for all of them together.
type bodies struct {
	// timeout is how long one may take to arrive.
	timeout time.Duration
	held    atomic.Int64

	mu sync.Mutex
	// of is what the bodies from each address hold.
	of map[string]int64
}

// hold counts bytes of one address more, or fewer, and tells whether they are
// too many.
func (b *bodies) hold(address string, n int64) (tooMany bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.of == nil {
		b.of = map[string]int64{}
	}
	own := b.of[address] + n
	if own == 0 {
		delete(b.of, address)
	} else {
		b.of[address] = own
	}
	return b.held.Add(n) > maxBodies || own > maxBodiesOfOne
}

// take reads a request's body, which must be JSON. What it holds is given back
// by release, which is never nil.
func (b *bodies) take(w http.ResponseWriter, r *http.Request) (data []byte, release func(), err error) {
	nothing := func() {}
	if r.ContentLength == 0 || r.Body == nil {
		return nil, nothing, nil
	}
	if r.Method == http.MethodGet || r.Method == http.MethodDelete {
		return nil, nothing, errdefs.New(errdefs.InvalidArgument, "BODY_NOT_EXPECTED",
			"a %s has no body here: what the path does not say goes into the query", r.Method)
	}
	if err := isJSON(r.Header); err != nil {
		return nil, nothing, err
	}
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(b.timeout)); err != nil {
		return nil, nothing, fmt.Errorf("bounding the time of a body: %w", err)
	}
	held := &heldReader{from: r.Body, in: b, address: ip(connectionOf(r).RemoteAddr())}
	release = func() { b.hold(held.address, -held.read) }
	data, err = io.ReadAll(held)
	if err != nil {
		release()
		if r.ProtoMajor == 1 {
			w.Header().Set("Connection", "close") // what is left of the body is not waited for
		}
		return nil, nothing, b.unreadable(err)
	}
	if err := control.SetReadDeadline(time.Time{}); err != nil {
		release()
		return nil, nothing, fmt.Errorf("a body has come: %w", err)
	}
	return data, release, nil
}

// isJSON refuses bodies that do not say that they are JSON.
func isJSON(h http.Header) error {
	if encoding := h.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return &refusal{http.StatusUnsupportedMediaType, errdefs.New(errdefs.InvalidArgument, "UNSUPPORTED_MEDIA_TYPE",
			"Content-Encoding: %q is not accepted; expected none", clip(encoding))}
	}
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	charset := params["charset"]
	if err != nil || kind != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
		return &refusal{http.StatusUnsupportedMediaType, errdefs.New(errdefs.InvalidArgument, "UNSUPPORTED_MEDIA_TYPE",
			"Content-Type: %q is not accepted; expected application/json (with curl: -H 'Content-Type: application/json')", clip(h.Get("Content-Type")))}
	}
	return nil
}

var (
	errTooLarge = errors.New("the body is too large")
	errTooMany  = errors.New("all bodies together are too large")
)

// heldReader counts what it reads, for one request and for all.
type heldReader struct {
	from io.Reader
	in   *bodies
	// address is where it comes from.
	address string
	read    int64
}

func (h *heldReader) Read(p []byte) (int, error) {
	n, err := h.from.Read(p)
	h.read += int64(n)
	if h.in.hold(h.address, int64(n)) {
		return n, errTooMany
	}
	if h.read > rpc.MaxRequestBytes {
		return n, errTooLarge
	}
	return n, err
}

func (b *bodies) unreadable(err error) error {
	switch {
	case errors.Is(err, errTooLarge):
		return &refusal{http.StatusRequestEntityTooLarge, errdefs.New(errdefs.ResourceExhausted, "REQUEST_TOO_LARGE",
			"the body has more than %d bytes", rpc.MaxRequestBytes)}
	case errors.Is(err, errTooMany):
		return errdefs.New(errdefs.Unavailable, "BUSY", "this replica has, or your address has sent it, too many large requests at once; try again").WithRetry(time.Second)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &refusal{http.StatusRequestTimeout, errdefs.New(errdefs.DeadlineExceeded, "REQUEST_TOO_SLOW", "the body did not come within %s", b.timeout)}
	default:
		return errdefs.New(errdefs.InvalidArgument, "INVALID_BODY", "the body cannot be read").WithCause(err)
	}
}

// clip cites a request, but not all of it.
func clip(s string) string {
	const most = 128
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
