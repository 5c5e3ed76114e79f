package metrics

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
)

// Calls counts calls: an api.Meter. One serves both listeners.
type Calls struct {
	// methods are those that there are; all others count as unknown.
	methods map[string]*method
	unknown *method
	// believed counts by what callers were known by.
	believed [credentials]atomic.Uint64
	refused  *prometheus.CounterVec
	allowed  atomic.Uint64
	denied   *prometheus.CounterVec
	limited  [2]atomic.Uint64
	words    obs.Words
}

var _ api.Meter = (*Calls)(nil)

const (
	credentials = int(api.BearerCredential) + 1
	codes       = int(errdefs.Unimplemented) + 1
)

// method is what is counted of one method.
type method struct {
	name    string
	ok      atomic.Uint64
	failed  [codes]atomic.Uint64
	streams atomic.Int64
	// seconds is of unary calls only: a stream takes as long as it likes.
	seconds prometheus.Histogram
}

var (
	callsDesc     = obs.Desc("rpc_calls_total", "Calls that have ended, by method and gRPC code.", "method", "code")
	streamsDesc   = obs.Desc("rpc_streams", "Streams that are open, by method.", "method")
	believedDesc  = obs.Desc("authentications_total", "Calls whose caller was believed, by what it was known by.", "credential")
	allowedDesc   = obs.Desc("authorizations_total", "Calls that their caller might make.")
	limitedDesc   = obs.Desc("rate_limited_total", "Calls refused since too many had come, from their principal or their address.", "by")
	callSeconds   = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 600}
	secondsName   = prometheus.BuildFQName(obs.Namespace, "rpc", "duration_seconds")
	limitedBy     = [2]string{"address", "principal"}
	credentialOf  = [credentials]string{"none", "certificate", "api_key", "jwt", "bearer"}
	codeOfSuccess = "OK"
)

// NewCalls makes one that counts the methods of which it is told the full names.
func NewCalls(names []string) *Calls {
	c := &Calls{methods: make(map[string]*method, len(names)), unknown: newMethod("unknown")}
	for _, name := range names {
		c.methods[name] = newMethod(name)
	}
	c.refused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: obs.Namespace, Name: "authentication_failures_total",
		Help: "Calls whose caller was not believed, by what it showed and the code of the refusal.",
	}, []string{"credential", "reason"})
	c.denied = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: obs.Namespace, Name: "authorization_failures_total",
		Help: "Calls that their caller might not make, by the code of the refusal.",
	}, []string{"reason"})
	return c
}

func newMethod(name string) *method {
	return &method{name: name, seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: secondsName, Help: "How long unary calls took, waits for their operations included.",
		ConstLabels: prometheus.Labels{"method": name}, Buckets: callSeconds,
	})}
}

// Authenticated counts.
func (c *Calls) Authenticated(by api.Credential, refusal string) {
	if refusal == "" {
		c.believed[by].Add(1)
		return
	}
	c.refused.WithLabelValues(credentialOf[by], c.words.Word(refusal)).Inc()
}

// Authorized counts.
func (c *Calls) Authorized(refusal string) {
	if refusal == "" {
		c.allowed.Add(1)
		return
	}
	c.denied.WithLabelValues(c.words.Word(refusal)).Inc()
}

// Limited counts.
func (c *Calls) Limited(principal bool) {
	if principal {
		c.limited[1].Add(1)
		return
	}
	c.limited[0].Add(1)
}

// StreamBegins counts.
func (c *Calls) StreamBegins(name string) { c.method(name).streams.Add(1) }

// Ended counts.
func (c *Calls) Ended(name string, stream, failed bool, kind errdefs.Kind, took time.Duration) {
	m := c.method(name)
	if failed {
		m.failed[kind].Add(1)
	} else {
		m.ok.Add(1)
	}
	if stream {
		m.streams.Add(-1)
		return
	}
	m.seconds.Observe(took.Seconds())
}

func (c *Calls) method(name string) *method {
	if m, ok := c.methods[name]; ok {
		return m
	}
	return c.unknown
}

// Describe tells nothing: which metrics there are depends on which methods were
// called.
func (c *Calls) Describe(chan<- *prometheus.Desc) {}

// Collect gives what was counted, of methods that were called.
func (c *Calls) Collect(out chan<- prometheus.Metric) {
	c.refused.Collect(out)
	c.denied.Collect(out)
	for _, by := range []api.Credential{api.CertificateCredential, api.KeyCredential, api.TokenCredential} {
		out <- counter(believedDesc, float64(c.believed[by].Load()), credentialOf[by])
	}
	out <- counter(allowedDesc, float64(c.allowed.Load()))
	for i := range c.limited {
		out <- counter(limitedDesc, float64(c.limited[i].Load()), limitedBy[i])
	}
	c.unknown.collect(out)
	for _, m := range c.methods {
		m.collect(out)
	}
}

func (m *method) collect(out chan<- prometheus.Metric) {
	calls := uint64(0)
	tell := func(code string, n uint64) {
		if calls += n; n > 0 {
			out <- counter(callsDesc, float64(n), m.name, code)
		}
	}
	tell(codeOfSuccess, m.ok.Load())
	for kind := range m.failed {
		tell(errdefs.Kind(kind).String(), m.failed[kind].Load())
	}
	open := m.streams.Load()
	if open != 0 {
		out <- gauge(streamsDesc, float64(open), m.name)
	}
	if calls > 0 {
		m.seconds.Collect(out)
	}
}

func counter(desc *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.CounterValue, value, labels...)
}

func gauge(desc *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
}
