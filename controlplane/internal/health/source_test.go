package health_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/health"
)

const patience = 20 * time.Second

// condition is a check whose answer a test decides.
type condition struct{ wrong atomic.Pointer[error] }

func (c *condition) why() error {
	if err := c.wrong.Load(); err != nil {
		return *err
	}
	return nil
}

func (c *condition) set(text string) {
	if text == "" {
		c.wrong.Store(nil)
		return
	}
	err := errors.New(text)
	c.wrong.Store(&err)
}

// await waits until the source has seen a readiness.
func await(t *testing.T, s *health.Source, want string) health.Report {
	t.Helper()
	late := time.After(patience)
	for {
		report, changed := s.Last()
		if report.String() == want {
			return report
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("it is %q, want %q", report, want)
		}
	}
}

func TestOneSourceOfReadiness(t *testing.T) {
	var leader, audit condition
	leader.set("nobody leads")
	s := health.New(hclog.NewNullLogger(), health.Check{Name: "leader", Why: leader.why, Spares: []string{"reads", "keys"}})
	if report, _ := s.Last(); report.Ready || report.Serves("") || report.Serves("reads") {
		t.Errorf("ready before anything was looked at: %s", report)
	}
	s.Add(health.Check{Name: "audit", Why: audit.why, Spares: []string{"reads"}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	report := await(t, s, "not ready: nobody leads")
	if report.Serves("") || report.Serves("writes") || !report.Serves("reads") || !report.Serves("keys") {
		t.Errorf("without a leader: %+v", report)
	}
	began := time.Now()
	leader.set("")
	await(t, s, "ready")
	if took := time.Since(began); took > time.Second {
		t.Errorf("it was seen after %s", took)
	}
	audit.set("disk full")
	if report = await(t, s, "not ready: disk full"); report.Serves("keys") || !report.Serves("reads") {
		t.Errorf("without an audit log: %+v", report)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	s.Stop() // seen at once, though nobody looks any more
	if report, _ = s.Last(); report.String() != "not ready: this replica stops; disk full" || report.Serves("reads") {
		t.Errorf("a replica that stops: %s", report)
	}
}

func TestReasonsOverHTTP(t *testing.T) {
	var c condition
	s := health.New(hclog.NewNullLogger(), health.Check{Name: "leader", Why: c.why})
	ask := func(h http.Handler, accept string) (int, string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	for _, step := range []struct {
		wrong, accept string
		status        int
		body          string
	}{
		{"", "", 200, "ready\n"},
		{"", "application/json", 200, "{\"ready\":true}\n"},
		{"nobody leads", "", 503, "not ready\nleader: nobody leads\n"},
		{"nobody leads", "application/json", 503, `{"ready":false,"reasons":[{"check":"leader","message":"nobody leads"}]}` + "\n"},
	} {
		c.set(step.wrong)
		if status, body := ask(s.ReadyHandler(), step.accept); status != step.status || body != step.body {
			t.Errorf("%+v: %d %q", step, status, body)
		}
	}
	if status, body := ask(health.AliveHandler(func() error { return nil }), ""); status != 200 || body != "ok\n" {
		t.Errorf("alive: %d %q", status, body)
	}
	if status, body := ask(health.AliveHandler(func() error { return errors.New("stuck") }), ""); status != 503 || body != "stuck\n" {
		t.Errorf("stuck: %d %q", status, body)
	}
}

// A look that is under way when the replica is asked to stop does not tell
// afterwards that it is ready.
func TestAStopIsTheLastWord(t *testing.T) {
	asked, goOn := make(chan struct{}), make(chan struct{})
	var looks atomic.Int32
	s := health.New(hclog.NewNullLogger(), health.Check{Name: "slow", Why: func() error {
		if looks.Add(1) == 1 {
			close(asked)
			<-goOn
		}
		return nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	ran, stopped := make(chan error, 1), make(chan struct{})
	go func() { ran <- s.Run(ctx) }()
	<-asked
	cancel() // the look that is under way is the last of its kind
	go func() {
		defer close(stopped)
		s.Stop()
	}()
	select {
	case <-stopped: // before the look is over
	case <-time.After(50 * time.Millisecond): // it waits for it, which is as good
	}
	close(goOn)
	<-stopped
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	if report, _ := s.Last(); report.Ready {
		t.Error("a replica that stops was last said to be ready")
	}
}
