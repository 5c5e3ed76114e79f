package agent

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/shared/obs"
)

// lastSpans is how long an agent that ends may take to send its last spans.
const lastSpans = 2 * time.Second

// openTracing makes the spans of this node's tasks; there are none without a
// collector. The agent begins no traces itself: it goes on with those of the
// operations that its tasks are for.
func openTracing(ctx context.Context, cfg Config, node string) (*obs.Tracing, error) {
	trace := cfg.Trace
	trace.Service, trace.Instance, trace.Log = "debvisor-agent", node, cfg.Log.Named("traces")
	return obs.OpenTracing(ctx, trace)
}

// closeTracing sends what is left. A collector that is not there holds up nobody
// for long.
func closeTracing(ctx context.Context, t *obs.Tracing) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSpans)
	defer cancel()
	return t.Close(ctx)
}
