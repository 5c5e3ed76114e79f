package obs

import (
	"net/http"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Namespace begins the name of every metric of ours.
const Namespace = "debvisor"

// Registry holds a daemon's metrics: its own, and nothing that a library
// registers by itself. No label may have a value that a caller can choose: not
// a VM's or a dataset's name, not a tenant's or a principal's.
type Registry struct{ *prometheus.Registry }

// NewRegistry makes a registry that tells of the Go runtime, of the process and
// of the build.
func NewRegistry(program string) Registry {
	r := Registry{prometheus.NewPedanticRegistry()}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: Namespace, Name: "build_info", Help: "What runs; always 1.",
		ConstLabels: prometheus.Labels{"program": program, "version": Version, "commit": commit(), "go": runtime.Version()},
	})
	build.Set(1)
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Commit is the commit that was built, set by the linker.
var Commit string

// commit is the commit that was built, as the Makefile or Go noted it; empty:
// neither did.
func commit() string {
	if Commit != "" {
		return Commit
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}

const (
	// maxScrapes is how many scrapes are answered at once.
	maxScrapes = 4
	// scrapeTimeout is how long one may take.
	scrapeTimeout = 10 * time.Second
)

// Handler answers scrapes. Who may scrape is left to others.
func (r Registry) Handler(log hclog.Logger) http.Handler {
	return promhttp.HandlerFor(r.Registry, promhttp.HandlerOpts{
		ErrorLog:            log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Error}),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout,
	})
}

// Desc describes a metric of ours. Name goes without the namespace.
func Desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(Namespace, "", name), help, labels, nil)
}
