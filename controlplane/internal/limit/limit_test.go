package limit

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestBucket(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l := New(Config{Principals: map[string]int{"panel": 600}})
	take := func(name string, n int) (passed int) {
		for range n {
			if l.Take(name, now) == nil {
				passed++
			}
		}
		return passed
	}
	if got := take("ada", 150); got != PerMinute {
		t.Errorf("%d calls passed at once, want %d", got, PerMinute)
	}
	if got := take("bob", 1); got != 1 {
		t.Error("one name's calls count against another")
	}
	if got := take("panel", 700); got != 600 {
		t.Errorf("%d calls of a principal with its own limit passed, want 600", got)
	}
	err := l.Take("ada", now)
	var e *errdefs.Error
	if !errors.As(err, &e) || e.Kind != errdefs.ResourceExhausted || e.RetryAfter < 500*time.Millisecond || e.RetryAfter > 700*time.Millisecond {
		t.Errorf("refused with %+v", e)
	}
	now = now.Add(e.RetryAfter)
	if got := take("ada", 2); got != 1 {
		t.Errorf("%d calls passed after the time said, want 1", got)
	}
	now = now.Add(30 * time.Second)
	if got := take("ada", 100); got != 50 {
		t.Errorf("%d calls passed after half a minute, want 50", got)
	}
}

func TestIdleNamesAreForgotten(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l := New(Config{})
	for i := range 10_000 {
		if err := l.Take(fmt.Sprintf("name-%d", i), now); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(2 * time.Minute)
	for i := range 16 * shards { // touches every shard
		if err := l.Take(fmt.Sprintf("other-%d", i), now); err != nil {
			t.Fatal(err)
		}
	}
	kept := 0
	for i := range l.shards {
		kept += len(l.shards[i].buckets)
	}
	if kept > 1000 {
		t.Errorf("%d names are still remembered", kept)
	}
}

func TestConcurrentCallersShareOneBucket(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l := New(Config{PerMinute: 50})
	var wg sync.WaitGroup
	passed := make(chan struct{}, 1000)
	for range 10 {
		wg.Go(func() {
			for range 100 {
				if l.Take("ada", now) == nil {
					passed <- struct{}{}
				}
			}
		})
	}
	wg.Wait()
	if len(passed) != 50 {
		t.Errorf("%d calls passed, want 50", len(passed))
	}
}
