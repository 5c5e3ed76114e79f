// Package gateway serves HTTP/JSON for callers that have curl and no gRPC. It
// terminates TLS and turns each request into a call of the same gRPC server that
// serves the callers' listener, over a connection inside of the process that
// speaks for the HTTP client (rpc.Inner): so the whole chain sees that client's
// own certificate, address, key or token, and nothing is decided here about who
// may do what. What the gateway refuses itself, unknown paths say, is what never
// becomes a call.
package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	gw "github.com/debvisor/debvisor/controlplane/internal/gateway/debvisor/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

const (
	// graceful is how long requests may go on once the gateway stops.
	graceful = 5 * time.Second
	// idle is how long a connection may do nothing.
	idle = 2 * time.Minute
	// writeTimeout is how long a client may take to take what it is sent.
	writeTimeout = 30 * time.Second
	// hardHeaderBytes is where the HTTP server itself ends a request, without
	// a problem's form; it is above the limit so that those a little above it
	// get one.
	hardHeaderBytes = 2 * rpc.MaxHeaderBytes
)

// Strangers bounds what one address may ask that becomes no call.
type Strangers interface {
	// Met counts one such request, or refuses it with ResourceExhausted.
	Met(address string, now time.Time) error
}

// Config is what a Gateway needs.
type Config struct {
	// Address is where to listen, host:port.
	Address string
	// TLS is the callers' listener's.
	TLS *tls.Config
	// Server is the callers' gRPC server, made by rpc.NewServer.
	Server    *grpc.Server
	Strangers Strangers
	// Ready answers GET /readyz, which everybody may ask; nil: there is none.
	Ready http.Handler
	Log   hclog.Logger
}

// Gateway is a listener for HTTP/JSON.
type Gateway struct {
	cfg      Config
	inner    *rpc.Inner
	lis      net.Listener
	http     *http.Server
	mux      *runtime.ServeMux
	document *document
	origins  *http.CrossOriginProtection
	bodies   bodies
}

// Listen makes a gateway and binds its socket.
func Listen(ctx context.Context, cfg Config) (*Gateway, error) {
	doc, err := newDocument()
	if err != nil {
		return nil, err
	}
	g := &Gateway{cfg: cfg, inner: rpc.NewInner(), document: doc, origins: http.NewCrossOriginProtection()}
	g.bodies.timeout = bodyTimeout
	if g.mux, err = g.newMux(ctx); err != nil {
		return nil, err
	}
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Address)
	if err != nil {
		return nil, err
	}
	g.lis = newDoor(lis, g.inner)
	g.http = &http.Server{
		Handler: g, TLSConfig: rpc.WithHTTP1(cfg.TLS), ConnContext: connContext,
		ReadHeaderTimeout: rpc.HandshakeTimeout, IdleTimeout: idle, MaxHeaderBytes: hardHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: rpc.MaxStreams, SendPingTimeout: rpc.PingAfter, PingTimeout: rpc.PingTimeout, WriteByteTimeout: writeTimeout,
		},
		ErrorLog: cfg.Log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	return g, nil
}

func (g *Gateway) newMux(ctx context.Context) (*runtime.ServeMux, error) {
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, wire{}),
		runtime.SetQueryParameterParser(&query{}),
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithOutgoingHeaderMatcher(func(key string) (string, bool) { return operationHeader, key == operationHeader }),
		runtime.WithOutgoingTrailerMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithErrorHandler(failed),
		runtime.WithRoutingErrorHandler(g.unrouted),
		runtime.WithMiddlewares(g.withBody),
		runtime.WithUnescapingMode(runtime.UnescapingModeAllExceptSlash),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithDisableChunkedEncoding(),
		runtime.WithWriteContentLength(),
		runtime.WithHealthzEndpoint(healthv1.NewHealthClient(into{})),
	)
	conn := into{}
	return mux, errors.Join(
		gw.RegisterAccessServiceHandlerClient(ctx, mux, debvisorv1.NewAccessServiceClient(conn)),
		gw.RegisterAuditServiceHandlerClient(ctx, mux, debvisorv1.NewAuditServiceClient(conn)),
		gw.RegisterClusterServiceHandlerClient(ctx, mux, debvisorv1.NewClusterServiceClient(conn)),
		gw.RegisterEventServiceHandlerClient(ctx, mux, debvisorv1.NewEventServiceClient(conn)),
		gw.RegisterMigrationServiceHandlerClient(ctx, mux, debvisorv1.NewMigrationServiceClient(conn)),
		gw.RegisterNodeServiceHandlerClient(ctx, mux, debvisorv1.NewNodeServiceClient(conn)),
		gw.RegisterOperationServiceHandlerClient(ctx, mux, debvisorv1.NewOperationServiceClient(conn)),
		gw.RegisterStorageServiceHandlerClient(ctx, mux, debvisorv1.NewStorageServiceClient(conn)),
		gw.RegisterVMServiceHandlerClient(ctx, mux, debvisorv1.NewVMServiceClient(conn)),
	)
}

// Addr is where the gateway listens.
func (g *Gateway) Addr() net.Addr { return g.lis.Addr() }

// Close closes the socket of a gateway that is not to run.
func (g *Gateway) Close() error { return g.lis.Close() }

// Run serves until ctx ends; requests at work get a grace. The gRPC server must
// not stop before.
func (g *Gateway) Run(ctx context.Context) error {
	calls, requests := make(chan error, 1), make(chan error, 1)
	go func() { calls <- g.cfg.Server.Serve(g.inner) }()
	go func() { requests <- g.http.ServeTLS(g.lis, "", "") }()
	select {
	case err := <-requests:
		return errors.Join(fmt.Errorf("serving %s: %w", g.Addr(), err), g.endCalls(calls))
	case err := <-calls:
		return errors.Join(fmt.Errorf("serving %s: the gRPC server has stopped: %w", g.Addr(), err), g.http.Close())
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), graceful)
	defer cancel()
	if err := g.http.Shutdown(grace); err != nil {
		_ = g.http.Close() // their time is over
	}
	if err := <-requests; !errors.Is(err, http.ErrServerClosed) {
		return errors.Join(fmt.Errorf("stopping %s: %w", g.Addr(), err), g.endCalls(calls))
	}
	return g.endCalls(calls)
}

// endCalls ends the inner listener.
func (g *Gateway) endCalls(calls <-chan error) error {
	_ = g.inner.Close() // it never fails
	if err := <-calls; err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("ending the gateway's calls: %w", err)
	}
	return nil
}

// ServeHTTP answers one request. It must have come through the gateway's socket.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := newWriter(w)
	defer out.end()
	from := connectionOf(r)
	if from == nil || r.TLS == nil {
		http.Error(out, "", http.StatusInternalServerError)
		return
	}
	trace := rpc.PickTrace(r.Header.Values)
	h := out.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set(traceHeader, trace)
	if from.aged(time.Now()) {
		h.Set("Connection", "close")
	}
	k, err := g.call(r, from, trace)
	if err != nil {
		g.refuse(out, r, err)
		return
	}
	if r.URL.Path == "/readyz" && g.cfg.Ready != nil {
		g.serveReady(out, r)
		return
	}
	if body, ok := open(r.URL.Path); ok {
		g.serveOpen(out, r, body)
		return
	}
	g.mux.ServeHTTP(out, k.request(r))
}

// traceHeader tells the caller the trace id of its request.
const traceHeader = "Debvisor-Trace-Id"

// call checks what can be checked of any request.
func (g *Gateway) call(r *http.Request, from *connection, trace string) (*call, error) {
	md, err := headers(r, trace)
	if err != nil {
		return nil, err
	}
	// A page in a browser that holds a client certificate must not use it.
	if err := g.origins.Check(r); err != nil {
		return nil, errdefs.New(errdefs.PermissionDenied, "CROSS_ORIGIN", "requests that change something do not come from another site's page").WithCause(err)
	}
	form, err := parameters(r)
	if err != nil {
		return nil, err
	}
	return &call{from: from, tls: r.TLS, metadata: md, form: form}, nil
}

// refuse answers a request that becomes no call.
func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if over := g.cfg.Strangers.Met(ip(connectionOf(r).RemoteAddr()), time.Now()); over != nil {
		w.Header().Set("Connection", "close")
		err = errdefs.New(errdefs.ResourceExhausted, "TOO_MANY_REQUESTS", "too many requests that are no calls have come from this address; calls go on").
			WithRetry(errdefs.FromStatus(over).RetryAfter)
	}
	newProblem(err, w.Header().Get(traceHeader)).write(w)
}

// serveReady answers whether the replica is ready, for balancers: as often as
// they ask.
func (g *Gateway) serveReady(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		g.notAllowed(w, r, http.MethodGet)
		return
	}
	g.cfg.Ready.ServeHTTP(w, r)
}

func (g *Gateway) serveOpen(w http.ResponseWriter, r *http.Request, body []byte) {
	if r.Method != http.MethodGet {
		g.notAllowed(w, r, http.MethodGet)
		return
	}
	if err := g.cfg.Strangers.Met(ip(connectionOf(r).RemoteAddr()), time.Now()); err != nil {
		g.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // a client that is gone needs no answer
}

func (g *Gateway) notAllowed(w http.ResponseWriter, r *http.Request, allowed string) {
	w.Header().Set("Allow", allowed)
	g.refuse(w, r, &refusal{http.StatusMethodNotAllowed, errdefs.New(errdefs.Unimplemented, "METHOD_NOT_ALLOWED",
		"%s is not for %s; expected %s", clip(r.Method), clip(r.URL.Path), allowed)})
}

// unrouted answers a request that has no path of ours.
func (g *Gateway) unrouted(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, _ int) {
	if allowed := g.document.allowed(r.URL.EscapedPath()); allowed != "" {
		g.notAllowed(w, r, allowed)
		return
	}
	g.refuse(w, r, errdefs.New(errdefs.NotFound, "PATH_NOT_FOUND", "there is no path %s; /openapi.json has those that there are", clip(r.URL.Path)))
}

// withBody gives the handler of a path the request's body, read and bounded.
func (g *Gateway) withBody(next runtime.HandlerFunc) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, inPath map[string]string) {
		for name, value := range inPath {
			if !utf8.ValidString(value) {
				g.refuse(w, r, errdefs.New(errdefs.InvalidArgument, "INVALID_PATH", "%s in the path is not UTF-8", name))
				return
			}
		}
		data, release, err := g.bodies.take(w, r)
		if err != nil {
			g.refuse(w, r, err)
			return
		}
		defer release()
		r.Body = io.NopCloser(bytes.NewReader(data))
		next(w, r, inPath)
	}
}

// failed answers a call that failed.
func failed(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
	if md, ok := runtime.ServerMetadataFromContext(ctx); ok {
		for _, id := range md.HeaderMD.Get(operationHeader) {
			w.Header().Add(operationHeader, id)
		}
	}
	var malformed *runtime.HTTPStatusError
	if errors.As(err, &malformed) {
		err = errdefs.New(errdefs.InvalidArgument, "INVALID_PATH", "the path cannot be read: %s", clip(malformed.Err.Error()))
	}
	newProblem(err, w.Header().Get(traceHeader)).write(w)
}

// operationHeader tells which operation a call began, in gRPC and here.
const operationHeader = "debvisor-operation"
