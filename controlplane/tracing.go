package controlplane

import (
	"context"
	"strings"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/obs"
)

// lastSpans is how long a replica that ends may take to send its last spans.
const lastSpans = 2 * time.Second

// openTracing makes the replica's spans; there are none without a collector.
func (r *replica) openTracing(ctx context.Context) error {
	cfg := r.cfg.Trace
	cfg.Service, cfg.Instance, cfg.Log = "debvisor-rpcd", r.member.Record().Name, r.cfg.Log.Named("traces")
	var err error
	r.tracing, err = obs.OpenTracing(ctx, cfg)
	return err
}

// closeTracing sends what is left. A collector that is not there holds up nobody
// for long.
func (r *replica) closeTracing(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSpans)
	defer cancel()
	if err := r.tracing.Close(ctx); err != nil {
		r.cfg.Log.Warn("the last traces are lost", "error", err)
	}
}

// untraced tells the calls that have no spans: they go on for as long as an agent
// is connected, or come from what only asks how the replica is.
func untraced(method string) bool {
	return method == agentv1.SessionService_Connect_FullMethodName ||
		strings.HasPrefix(method, "/grpc.health.v1.") || strings.HasPrefix(method, "/grpc.reflection.")
}
