package api

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/debvisor/debvisor/controlplane/internal/health"
	"github.com/debvisor/debvisor/shared/rpc"
)

// lastWord is how long watchers of the health have to be told of its end.
const lastWord = 200 * time.Millisecond

// watchedHealth is the health service, whose watches end when the replica
// stops: grpc's own go on until the caller leaves, and would hold up the end.
type watchedHealth struct {
	*grpchealth.Server
	// services are those that it tells of besides the replica as a whole, "".
	services []string
	stopping chan struct{}
	once     sync.Once
}

func newWatchedHealth() *watchedHealth {
	h := &watchedHealth{Server: grpchealth.NewServer(), stopping: make(chan struct{})}
	h.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING) // until it is known to be otherwise
	return h
}

// covers has it tell of a server's services, too.
func (h *watchedHealth) covers(info map[string]grpc.ServiceInfo) {
	for name := range info {
		h.services = append(h.services, name)
		h.SetServingStatus(name, healthv1.HealthCheckResponse_NOT_SERVING)
	}
}

// tell makes known how the replica is.
func (h *watchedHealth) tell(report health.Report) {
	for _, service := range append([]string{""}, h.services...) {
		status := healthv1.HealthCheckResponse_NOT_SERVING
		if report.Serves(service) {
			status = healthv1.HealthCheckResponse_SERVING
		}
		h.SetServingStatus(service, status)
	}
}

// leave says NOT_SERVING for good, tells that to all who watch, and ends their
// watches.
func (h *watchedHealth) leave() {
	h.Shutdown()
	h.once.Do(func() { close(h.stopping) })
}

// Watch tells the health and each change of it.
func (h *watchedHealth) Watch(req *healthv1.HealthCheckRequest, stream grpc.ServerStreamingServer[healthv1.HealthCheckResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	ended := make(chan struct{})
	defer func() {
		cancel()
		<-ended
	}()
	go func() {
		defer close(ended)
		select {
		case <-h.stopping:
			timer := time.NewTimer(lastWord)
			defer timer.Stop()
			select {
			case <-timer.C:
				cancel()
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
	}()
	return h.Server.Watch(req, &healthStream{
		GenericServerStream: grpc.GenericServerStream[healthv1.HealthCheckRequest, healthv1.HealthCheckResponse]{
			ServerStream: rpc.WithContext(ctx, stream),
		},
	})
}

// healthStream is a watch's stream with another context.
type healthStream struct {
	grpc.GenericServerStream[healthv1.HealthCheckRequest, healthv1.HealthCheckResponse]
}
