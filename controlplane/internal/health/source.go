// Package health says whether a replica can do what callers want of it, and
// why not: one source, of which the gRPC health service, /readyz and the
// service manager are told. What is looked at is brought by others, as checks
// that answer from memory.
package health

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// lookEvery is how often the checks are asked: changes are seen within a second.
const lookEvery = 200 * time.Millisecond

// Check is one condition of being ready.
type Check struct {
	// Name is a word, such as "leader".
	Name string
	// Why tells what is wrong, in words that anybody may read; nil: nothing is.
	// It must not wait for anything.
	Why func() error
	// Spares are the full names of the services that do without.
	Spares []string
}

// Reason is why a replica is not ready.
type Reason struct {
	Check   string `json:"check"`
	Message string `json:"message"`
	spares  []string
}

// Report is how a replica is.
type Report struct {
	Ready   bool     `json:"ready"`
	Reasons []Reason `json:"reasons,omitempty"`
}

// Serves tells whether a service, by its full name, can do what callers want of
// it; "": the replica as a whole.
func (r Report) Serves(service string) bool {
	for _, reason := range r.Reasons {
		if service == "" || !slices.Contains(reason.spares, service) {
			return false
		}
	}
	return true
}

// String is one line.
func (r Report) String() string {
	if r.Ready {
		return "ready"
	}
	why := make([]string, 0, len(r.Reasons))
	for _, reason := range r.Reasons {
		why = append(why, reason.Message)
	}
	return "not ready: " + strings.Join(why, "; ")
}

// Source is the one source of readiness. It is safe for concurrent use.
type Source struct {
	log hclog.Logger

	// looking has one look at a time: one that began before Stop must not be told
	// after it.
	looking sync.Mutex

	mu       sync.Mutex
	checks   []Check
	stopping bool
	last     Report
	changed  chan struct{}
}

// New makes a source; Run must run for Changed to tell anything.
func New(log hclog.Logger, checks ...Check) *Source {
	return &Source{
		log: log, checks: checks, changed: make(chan struct{}),
		last: Report{Reasons: []Reason{{Check: "start", Message: "it has just started"}}},
	}
}

// Add adds a check.
func (s *Source) Add(c Check) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checks = append(s.checks, c)
}

// Stop says, at once and for good, that the replica stops.
func (s *Source) Stop() {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.look()
}

// Ready asks all checks.
func (s *Source) Ready() Report {
	s.mu.Lock()
	checks, stopping := slices.Clone(s.checks), s.stopping
	s.mu.Unlock()
	var report Report
	if stopping {
		report.Reasons = append(report.Reasons, Reason{Check: "stopping", Message: "this replica stops"})
	}
	for _, c := range checks {
		if err := c.Why(); err != nil {
			report.Reasons = append(report.Reasons, Reason{Check: c.Name, Message: err.Error(), spares: c.Spares})
		}
	}
	report.Ready = len(report.Reasons) == 0
	return report
}

// Last is what was last seen, and a channel that is closed once it is seen to
// be otherwise.
func (s *Source) Last() (Report, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.changed
}

// Run looks until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		s.look()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// look asks all checks and tells what has changed.
func (s *Source) look() {
	s.looking.Lock()
	defer s.looking.Unlock()
	now := s.Ready()
	s.mu.Lock()
	was, stopping := s.last, s.stopping
	same := slices.EqualFunc(was.Reasons, now.Reasons, func(a, b Reason) bool { return a.Check == b.Check })
	s.last = now
	if !same {
		close(s.changed)
		s.changed = make(chan struct{})
	}
	s.mu.Unlock()
	switch {
	case same:
	case now.Ready:
		s.log.Info("this replica is ready")
	case stopping:
		s.log.Info("this replica is not ready any more: it stops")
	default:
		s.log.Warn("this replica is not ready", "reason", now.String())
	}
}
