package inventory

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	online      = storev1.NodeLiveness_NODE_LIVENESS_ONLINE
	suspect     = storev1.NodeLiveness_NODE_LIVENESS_SUSPECT
	unreachable = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
)

// still is a view whose snapshot never changes: of an etcd that nobody reads.
type still struct{ snapshot *cluster.Snapshot }

func (v still) Current() *cluster.Snapshot         { return v.snapshot }
func (v still) Changed() <-chan struct{}           { return nil }
func (v still) Await(context.Context, int64) error { return nil }

// counter is an etcd that only counts what it is asked to write.
type counter struct{ txns, puts atomic.Int64 }

func (c *counter) Commit(_ context.Context, change store.Change) (int64, error) {
	if len(change.Puts)+len(change.Deletes) > 0 {
		c.txns.Add(1)
		c.puts.Add(int64(len(change.Puts)))
	}
	return c.txns.Load() + 1, nil
}

// leading is an inventory in its first moment of leadership.
func leading(t *testing.T, s *cluster.Snapshot) (*Inventory, *counter) {
	t.Helper()
	c := &counter{}
	i := New(Config{View: still{s}, Store: c, Interval: 2 * time.Second, Log: hclog.NewNullLogger()})
	if err := i.Begin(t.Context(), election.Leadership{}); err != nil {
		t.Fatal(err)
	}
	return i, c
}

func (i *Inventory) livenessOf(id string) storev1.NodeLiveness {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.nodes[id].liveness
}

// keep runs Lead for the rest of the test.
func (i *Inventory) keep(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- i.Lead(ctx, election.Leadership{}) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Lead: %v", err)
		}
	}
}

func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, _ := leading(t, cluster.Empty())
		defer i.keep(t)()
		i.Heartbeat("n", &debvisorv1.Health{})
		for _, step := range []struct {
			after time.Duration // since the last heartbeat
			want  storev1.NodeLiveness
		}{{time.Second, online}, {6 * time.Second, online}, {7200 * time.Millisecond, suspect}, {9 * time.Second, suspect}, {10500 * time.Millisecond, unreachable}, {time.Hour, unreachable}} {
			heard, _, _ := i.Heard("n")
			time.Sleep(step.after - time.Since(heard))
			if got := i.livenessOf("n"); got != step.want {
				t.Errorf("after %s: %s, want %s", step.after, got, step.want)
			}
		}
		i.Heartbeat("n", &debvisorv1.Health{})
		if got := i.livenessOf("n"); got != online {
			t.Errorf("heard again: %s", got)
		}
	})
}

func TestClocksBeginAnewWithALeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := cluster.Empty().Draft()
		for id, l := range map[string]storev1.NodeLiveness{"was-online": online, "was-suspect": suspect, "was-lost": unreachable} {
			d.Statuses.Put(id, &storev1.NodeStatus{Id: id, Liveness: l}, 1)
		}
		i, _ := leading(t, d.Snapshot(1))
		defer i.keep(t)()
		time.Sleep(5 * time.Second)
		for id, want := range map[string]storev1.NodeLiveness{"was-online": online, "was-suspect": suspect, "was-lost": unreachable} {
			if got := i.livenessOf(id); got != want {
				t.Errorf("%s after 5 s: %s", id, got)
			}
			if _, _, ok := i.Heard(id); ok {
				t.Errorf("%s was heard by nobody", id)
			}
		}
		time.Sleep(6 * time.Second)
		for _, id := range []string{"was-online", "was-suspect", "was-lost"} {
			if got := i.livenessOf(id); got != unreachable {
				t.Errorf("%s after 11 s: %s", id, got)
			}
		}
	})
}

func TestHeartbeatsAreNotWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, c := leading(t, cluster.Empty())
		defer i.keep(t)()
		const agents, minutes = 100, 10
		beats := 0
		for second := 0; second < minutes*60; second += 2 {
			for a := range agents {
				i.Heartbeat(fmt.Sprint(a), &debvisorv1.Health{Overall: debvisorv1.StatusCode_STATUS_OK, CpuLoad: float64(second)})
				beats++
			}
			time.Sleep(2 * time.Second)
		}
		if ratio := float64(c.txns.Load()) / float64(beats); ratio > 0.01 {
			t.Errorf("%d transactions for %d heartbeats: %.4f each", c.txns.Load(), beats, ratio)
		}
		if c.puts.Load() < agents*minutes {
			t.Errorf("only %d records were written: the last-known state would be old", c.puts.Load())
		}
		time.Sleep(time.Second) // past the write of all that is due with the last sleep
		before := c.txns.Load()
		i.Heartbeat("7", &debvisorv1.Health{Overall: debvisorv1.StatusCode_STATUS_ERROR, Problems: []string{"libvirt does not answer"}})
		synctest.Wait()
		if c.txns.Load() != before+1 {
			t.Error("a change of health waits")
		}
	})
}

func TestOpenWaitsForItsWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, c := leading(t, cluster.Empty())
		stop := i.keep(t)
		revision, err := i.Open(t.Context(), "n", Facts{JournalID: "j", BootID: "b"})
		if err != nil || revision != c.txns.Load()+1 || c.puts.Load() == 0 {
			t.Errorf("Open: revision %d, %v, after %d writes", revision, err, c.puts.Load())
		}
		if j, err := i.Journal("n"); j != "j" || err != nil {
			t.Errorf("journal %q, %v", j, err)
		}
		stop()
		if _, err := i.Open(t.Context(), "n", Facts{}); err == nil {
			t.Error("a replica that does not lead opened a session")
		}
	})
}
