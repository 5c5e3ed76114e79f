package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/shared/obs"
)

const (
	// etcdEvery is how often etcd is asked how it is, etcdTimeout how long it may
	// take to say so.
	etcdEvery   = 10 * time.Second
	etcdTimeout = 3 * time.Second
)

// Etcd measures requests to etcd, as a store.Meter, and asks the member that
// this replica uses how it is, a few times a minute and not for each scrape.
type Etcd struct {
	seconds  *prometheus.HistogramVec
	failures *prometheus.CounterVec

	mu    sync.Mutex
	state *store.MemberState // nil: it did not answer
}

var _ store.Meter = (*Etcd)(nil)

var (
	etcdUpDesc    = obs.Desc("etcd_up", "1 while the etcd member that this replica uses answers, else 0.")
	etcdSizeDesc  = obs.Desc("etcd_db_size_bytes", "The file of etcd's database, as this replica's member has it.")
	etcdInUseDesc = obs.Desc("etcd_db_in_use_bytes", "What of the file is in use.")
	etcdQuotaDesc = obs.Desc("etcd_db_quota_bytes", "What the file may grow to; absent where the member does not say.")
	etcdTermDesc  = obs.Desc("etcd_raft_term", "The term of etcd's own consensus.")
	etcdIndexDesc = obs.Desc("etcd_raft_index", "The last entry of etcd's log that this replica's member has.")
	etcdAlarmDesc = obs.Desc("etcd_alarms", "Alarms that etcd's members have raised, such as that no space is left.")
	etcdLeadDesc  = obs.Desc("etcd_has_leader", "1 while this replica's member knows a leader of etcd's consensus, else 0.")
)

// NewEtcd makes one that has measured nothing.
func NewEtcd() *Etcd {
	return &Etcd{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: obs.Namespace, Name: "etcd_request_duration_seconds", Help: "How long etcd took to answer, by etcd's name of the request.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"request"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: obs.Namespace, Name: "etcd_request_failures_total", Help: "Requests that etcd failed to answer, by etcd's name of the request.",
		}, []string{"request"}),
	}
}

// Request measures.
func (e *Etcd) Request(name string, took time.Duration, failed bool) {
	e.seconds.WithLabelValues(name).Observe(took.Seconds())
	if failed {
		e.failures.WithLabelValues(name).Inc()
	}
}

// Run asks, by what it is given, how etcd's member is until ctx ends.
func (e *Etcd) Run(ctx context.Context, ask func(context.Context) (store.MemberState, error), log hclog.Logger) error {
	tick := time.NewTicker(etcdEvery)
	defer tick.Stop()
	for {
		e.look(ctx, ask, log)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (e *Etcd) look(ctx context.Context, ask func(context.Context) (store.MemberState, error), log hclog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	state, err := ask(ctx)
	if err != nil {
		log.Debug("etcd does not say how it is", "error", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.state = &state; err != nil {
		e.state = nil
	}
}

// Describe describes.
func (e *Etcd) Describe(out chan<- *prometheus.Desc) {
	e.seconds.Describe(out)
	e.failures.Describe(out)
	for _, d := range []*prometheus.Desc{
		etcdUpDesc, etcdSizeDesc, etcdInUseDesc, etcdQuotaDesc, etcdTermDesc, etcdIndexDesc, etcdAlarmDesc, etcdLeadDesc,
	} {
		out <- d
	}
}

// Collect gives what was measured, and what the member said last.
func (e *Etcd) Collect(out chan<- prometheus.Metric) {
	e.seconds.Collect(out)
	e.failures.Collect(out)
	e.mu.Lock()
	state := e.state
	e.mu.Unlock()
	out <- gauge(etcdUpDesc, one(state != nil))
	if state == nil {
		return
	}
	out <- gauge(etcdSizeDesc, float64(state.Size))
	out <- gauge(etcdInUseDesc, float64(state.InUse))
	if state.Quota > 0 {
		out <- gauge(etcdQuotaDesc, float64(state.Quota))
	}
	out <- gauge(etcdTermDesc, float64(state.Term))
	out <- gauge(etcdIndexDesc, float64(state.Index))
	out <- gauge(etcdAlarmDesc, float64(state.Alarms))
	out <- gauge(etcdLeadDesc, one(state.HasLeader))
}
