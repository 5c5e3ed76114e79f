package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

// Endings counts what comes to its end, as this replica sees it come: every
// replica counts the same, each since its start.
type Endings struct {
	operations, tasks *prometheus.CounterVec
	seconds           *prometheus.HistogramVec
	// moved and down are of migrations that succeeded.
	moved, down, moving prometheus.Histogram
	replicated          prometheus.Counter
	// kinds are words of our code.
	kinds obs.Words
}

// NewEndings makes one that has counted nothing.
func NewEndings() *Endings {
	const mib = 1 << 20
	return &Endings{
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: obs.Namespace, Name: "operations_ended_total", Help: "Operations that have ended, by kind and state.",
		}, []string{"kind", "state"}),
		tasks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: obs.Namespace, Name: "tasks_ended_total", Help: "Tasks that have ended, by kind and state.",
		}, []string{"kind", "state"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: obs.Namespace, Name: "operation_duration_seconds", Help: "From the asking for operations to their ends, by kind.",
			Buckets: []float64{.05, .25, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600},
		}, []string{"kind"}),
		moved: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: obs.Namespace, Name: "migration_bytes", Help: "Memory and disks that were copied in migrations that succeeded.",
			Buckets: prometheus.ExponentialBuckets(64*mib, 4, 10),
		}),
		down: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: obs.Namespace, Name: "migration_downtime_seconds", Help: "For how long guests stood still in migrations that succeeded.",
			Buckets: []float64{.01, .025, .05, .1, .2, .3, .5, 1, 2, 5, 30, 300},
		}),
		moving: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: obs.Namespace, Name: "migration_duration_seconds", Help: "From the first step to the end of migrations that succeeded.",
			Buckets: []float64{1, 2, 5, 10, 30, 60, 120, 300, 900, 3600, 4 * 3600},
		}),
		replicated: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: obs.Namespace, Name: "replication_sent_bytes_total", Help: "Bytes that runs of replications have sent, counted at their ends.",
		}),
	}
}

// Take counts; it is to be told by a store.View.
func (e *Endings) Take(ended cluster.Endings) {
	for _, op := range ended.Operations {
		e.operation(op)
	}
	for _, t := range ended.Tasks {
		e.tasks.WithLabelValues(taskKind(t, &e.kinds), taskState(t.GetState())).Inc()
	}
}

func (e *Endings) operation(op *storev1.Operation) {
	kind := e.kinds.Word(op.GetKind())
	e.operations.WithLabelValues(kind, operationState(op.GetState())).Inc()
	if op.GetEndedAt() != nil && op.GetCreatedAt() != nil {
		e.seconds.WithLabelValues(kind).Observe(max(op.GetEndedAt().AsTime().Sub(op.GetCreatedAt().AsTime()), 0).Seconds())
	}
	if r := op.GetReplicate(); r != nil {
		e.replicated.Add(float64(r.GetBytes()))
	}
	m := op.GetMigrate()
	if m == nil || op.GetState() != task.OpSucceeded {
		return
	}
	e.moved.Observe(float64(m.GetBytes()))
	e.moving.Observe((time.Duration(m.GetDurationMs()) * time.Millisecond).Seconds()) //nolint:gosec // of the leader's own clock
	if m.GetWasRunning() && !m.GetAllowDowntime() {
		e.down.Observe((time.Duration(m.GetDowntimeMs()) * time.Millisecond).Seconds()) //nolint:gosec // likewise
	}
}

// Describe describes.
func (e *Endings) Describe(out chan<- *prometheus.Desc) {
	for _, c := range e.all() {
		c.Describe(out)
	}
}

// Collect gives what was counted.
func (e *Endings) Collect(out chan<- prometheus.Metric) {
	for _, c := range e.all() {
		c.Collect(out)
	}
}

func (e *Endings) all() []prometheus.Collector {
	return []prometheus.Collector{e.operations, e.tasks, e.seconds, e.moved, e.down, e.moving, e.replicated}
}
