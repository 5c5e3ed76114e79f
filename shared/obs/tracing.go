package obs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// TraceConfig says where a program's spans go.
type TraceConfig struct {
	// Service is the program's name; Instance the replica's or the node's, if any.
	Service, Instance string
	// Endpoint is a collector's OTLP/gRPC listener, https://host:port or
	// unix:///path; empty: nothing is traced.
	Endpoint string
	// CA is the PEM file of the CAs that vouch for the collector; empty: the
	// host's. Cert and Key are what is shown to it; both empty: nothing.
	CA, Cert, Key string
	// Sample is the part of the traces begun here that are recorded, 0 to 1. What
	// was begun elsewhere is recorded where its beginning was.
	Sample float64
	// Wait is how long a span may wait for others to be sent with it; 0: 1 s.
	Wait time.Duration
	// Log is told, once in a while, that spans are lost; nothing waits for them.
	Log hclog.Logger
}

// Check refuses what OpenTracing could not use, without reading files.
func (c TraceConfig) Check() error {
	if c.Sample < 0 || c.Sample > 1 || c.Sample != c.Sample {
		return errdefs.Field("trace-sample", strconv.FormatFloat(c.Sample, 'g', -1, 64), "a number from 0 to 1")
	}
	if c.Endpoint == "" {
		if c.CA != "" || c.Cert != "" || c.Key != "" {
			return errdefs.Field("trace-endpoint", "", "https://host:port or unix:///path, since the collector's files are given")
		}
		return nil
	}
	if (c.Cert == "") != (c.Key == "") {
		return errdefs.Field("trace-cert", c.Cert, "a certificate and its key (trace-key), or neither")
	}
	_, _, err := c.target()
	return err
}

// target gives the endpoint as grpc dials it, and the host that its certificate
// must name; "" for a socket of this host, whose owner vouches for it.
func (c TraceConfig) target() (address, host string, err error) {
	u, err := url.Parse(c.Endpoint)
	shown := c.Endpoint
	if err == nil && u.User != nil { // a password, which no log is to have
		shown = u.Redacted()
	}
	refused := errdefs.Field("trace-endpoint", shown, "https://host:port, or unix:///path; spans are never sent in plain text over a network")
	switch {
	case err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", "", refused
	case u.Scheme == "unix" && u.Host == "" && len(u.Path) > 1:
		return "unix://" + u.Path, "", nil
	case u.Scheme != "https" || u.Hostname() == "" || u.Path != "" && u.Path != "/":
		return "", "", refused
	}
	port := u.Port()
	if port == "" {
		port = "4317" // OTLP/gRPC's own
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", "", refused
	}
	return net.JoinHostPort(u.Hostname(), port), u.Hostname(), nil
}

// Look reads the files that a good configuration names, as a start does.
func (c TraceConfig) Look() error {
	if c.Endpoint == "" {
		return nil
	}
	_, host, err := c.target()
	if err == nil {
		_, err = c.transport(host)
	}
	return err
}

// transport is how the collector is spoken to.
func (c TraceConfig) transport(host string) (otlptracegrpc.Option, error) {
	if host == "" {
		return otlptracegrpc.WithInsecure(), nil // a unix socket: no bytes leave the host
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("reading trace-ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errdefs.Field("trace-ca", c.CA, "a file of CA certificates, PEM")
		}
	}
	if c.Cert != "" {
		if _, err := tls.LoadX509KeyPair(c.Cert, c.Key); err != nil {
			return nil, fmt.Errorf("reading trace-cert and trace-key: %w", err)
		}
		// Read with each handshake: whoever replaces the files needs no restart.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
			return &pair, err
		}
	}
	return otlptracegrpc.WithTLSCredentials(credentials.NewTLS(cfg)), nil
}

// scope names who made a span.
const scope = "github.com/debvisor/debvisor"

// Tracing makes a program's spans and sends them to a collector. A nil one
// traces nothing and costs nothing. It is safe for concurrent use.
type Tracing struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	// begun decides which traces that begin here are recorded.
	begun sdktrace.Sampler
}

// samples tells whether a trace that begins here is recorded.
func (t *Tracing) samples(id trace.TraceID) bool {
	return t.begun.ShouldSample(sdktrace.SamplingParameters{TraceID: id}).Decision == sdktrace.RecordAndSample
}

// OpenTracing makes a Tracing; nil, without an error, where there is no endpoint.
// The collector need not be there: it is dialled when there is something to send.
func OpenTracing(ctx context.Context, cfg TraceConfig) (*Tracing, error) {
	if err := cfg.Check(); err != nil || cfg.Endpoint == "" {
		return nil, err
	}
	address, host, err := cfg.target()
	if err != nil {
		return nil, err
	}
	transport, err := cfg.transport(host)
	if err != nil {
		return nil, err
	}
	exporter, err := otlptracegrpc.New(context.WithoutCancel(ctx), otlptracegrpc.WithEndpoint(address), transport,
		otlptracegrpc.WithTimeout(exportTimeout), otlptracegrpc.WithDialOption(grpc.WithDisableServiceConfig()))
	if err != nil {
		return nil, fmt.Errorf("preparing traces: %w", err)
	}
	return newTracing(cfg, exporter), nil
}

const (
	// exportTimeout is how long one batch may take; then it is lost.
	exportTimeout = 10 * time.Second
	// maxQueue is how many spans wait at most; more are lost.
	maxQueue = 4096
	// maxValue is where a value of an attribute is cut, bytes.
	maxValue = 512
)

func newTracing(cfg TraceConfig, exporter *otlptrace.Exporter) *Tracing {
	about := []attribute.KeyValue{attribute.String("service.name", cfg.Service), attribute.String("service.version", Version)}
	if cfg.Instance != "" {
		about = append(about, attribute.String("service.instance.id", cfg.Instance))
	}
	wait := cfg.Wait
	if wait == 0 {
		wait = time.Second
	}
	limits := sdktrace.NewSpanLimits()
	limits.AttributeValueLengthLimit = maxValue
	begun := sdktrace.TraceIDRatioBased(cfg.Sample)
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithResource(resource.NewSchemaless(about...)),
		sdktrace.WithSampler(sdktrace.ParentBased(begun)),
		sdktrace.WithIDGenerator(generator{}),
		sdktrace.WithRawSpanLimits(limits),
		sdktrace.WithBatcher(&quietExporter{SpanExporter: exporter, log: cfg.Log},
			sdktrace.WithBatchTimeout(wait), sdktrace.WithExportTimeout(exportTimeout), sdktrace.WithMaxQueueSize(maxQueue)),
	)
	return &Tracing{provider: provider, tracer: provider.Tracer(scope), begun: begun}
}

// Close sends what is left, until ctx ends at the latest.
func (t *Tracing) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("ending traces: %w", err)
	}
	return nil
}

// Flush sends what waits, until ctx ends at the latest.
func (t *Tracing) Flush(ctx context.Context) {
	if t != nil {
		_ = t.provider.ForceFlush(ctx) // what is lost then was told by the exporter
	}
}

// Server makes the spans of a server's calls; nil where nothing is traced.
// Calls of methods for which skip says so have none: they go on for as long as
// the program.
func (t *Tracing) Server(skip func(method string) bool) stats.Handler {
	if t == nil {
		return nil
	}
	return otelgrpc.NewServerHandler(t.options(otelgrpc.WithFilter(func(i *stats.RPCTagInfo) bool { return !skip(i.FullMethodName) }))...)
}

// Dial is how a connection's calls get spans and carry them on; empty where
// nothing is traced.
func (t *Tracing) Dial() []grpc.DialOption {
	if t == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(t.options()...))}
}

func (t *Tracing) options(more ...otelgrpc.Option) []otelgrpc.Option {
	return append([]otelgrpc.Option{
		otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithMeterProvider(noop.NewMeterProvider()),
	}, more...)
}

// quietFor is how long a loss of spans that was told is not told again.
const quietFor = 30 * time.Second

// quietExporter tells the log what could not be sent, and nobody else.
type quietExporter struct {
	sdktrace.SpanExporter
	log hclog.Logger

	mu    sync.Mutex
	until time.Time
	lost  int
}

// ExportSpans sends spans; they are lost where that fails.
func (e *quietExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lost += len(spans)
	if now := time.Now(); e.log != nil && now.After(e.until) {
		e.log.Warn("traces are lost: the collector does not take them", "spans", e.lost, "error", err)
		e.until, e.lost = now.Add(quietFor), 0
	}
	return nil
}
