package main

import (
	"context"
	"os"
	"time"

	"github.com/debvisor/debvisor/shared/obs"
)

// lastSpans is how long hvctl waits for the collector when all else is done.
const lastSpans = 2 * time.Second

// tracing is where the spans of a run go, and the one that all others are below.
type tracing struct {
	// command is the command's name, without its arguments, which may be secrets.
	command string
	begun   bool
	to      *obs.Tracing
	root    obs.Span
}

// traceConfig is what flags say of traces, and for what they do not the variables
// of OpenTelemetry, which other programs may read as well.
func (a *app) traceConfig() (cfg obs.TraceConfig, given bool) {
	cfg = obs.TraceConfig{Service: "hvctl", Endpoint: a.flags.traceEndpoint, CA: a.flags.traceCA, Sample: 1}
	given = cfg.Endpoint != ""
	if !given {
		cfg.Endpoint = os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
	}
	if cfg.CA == "" && cfg.Endpoint != "" {
		cfg.CA = os.Getenv("OTEL_EXPORTER_OTLP_CERTIFICATE")
	}
	return cfg, given
}

// trace begins the run's trace, with its first connection, where a collector is
// told of. What the environment says is for other programs, too: if it cannot be
// used hvctl says so and goes on.
func (a *app) trace(ctx context.Context) (context.Context, error) {
	t := &a.tracing
	if t.begun {
		return t.root.In(ctx), nil
	}
	t.begun = true
	cfg, given := a.traceConfig()
	to, err := obs.OpenTracing(ctx, cfg)
	switch {
	case err != nil && given:
		return ctx, usage("%v", err)
	case err != nil:
		a.hint("this command is not traced: OTEL_EXPORTER_OTLP_ENDPOINT: %v", err)
	}
	t.to = to
	ctx, t.root = to.Begin(ctx, "hvctl "+t.command, "")
	return ctx, nil
}

// endTrace sends what there is of the run's trace.
func (a *app) endTrace(ctx context.Context, err error) {
	a.tracing.root.End(err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSpans)
	defer cancel()
	if err := a.tracing.to.Close(ctx); err != nil {
		a.hint("this command's trace is lost: %v", err)
	}
}
