package limit

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// passed is how many of n calls at one moment pass.
func passed(l *Limiter, name string, r Rate, now time.Time, n int) (passed int) {
	for range n {
		if l.Take(name, r, now) == nil {
			passed++
		}
	}
	return passed
}

func TestBucket(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l := New()
	if got := passed(l, "ada", Rate{}, now, 150); got != PerMinute {
		t.Errorf("%d calls passed at once, want %d", got, PerMinute)
	}
	if got := passed(l, "bob", Rate{}, now, 1); got != 1 {
		t.Error("one name's calls count against another")
	}
	if got := passed(l, "panel", Rate{PerMinute: 600}, now, 700); got != 600 {
		t.Errorf("%d calls of a principal with its own limit passed, want 600", got)
	}
	if got := passed(l, "ci", Rate{PerMinute: 600, Burst: 7}, now, 700); got != 7 {
		t.Errorf("%d calls passed at once with a burst of 7", got)
	}
	if got := passed(l, "free", Rate{PerMinute: 1, Unlimited: true}, now, 1000); got != 1000 {
		t.Errorf("%d of 1000 calls passed without a limit", got)
	}
	err := l.Take("ada", Rate{}, now)
	var e *errdefs.Error
	if !errors.As(err, &e) || e.Kind != errdefs.ResourceExhausted || e.RetryAfter < 500*time.Millisecond || e.RetryAfter > 700*time.Millisecond {
		t.Fatalf("refused with %+v", e)
	}
	if l.Peek("ada", Rate{}, now) == nil || l.Peek("nobody", Rate{}, now) != nil {
		t.Error("Peek tells otherwise than Take")
	}
	now = now.Add(e.RetryAfter)
	if got := passed(l, "ada", Rate{}, now, 2); got != 1 {
		t.Errorf("%d calls passed after the time said, want 1", got)
	}
	now = now.Add(30 * time.Second)
	if got := passed(l, "ada", Rate{}, now, 100); got != 50 {
		t.Errorf("%d calls passed after half a minute, want 50", got)
	}
	if got := passed(l, "ada", Rate{}, now.Add(-time.Hour), 1); got != 0 {
		t.Error("a clock that was set back lets calls pass")
	}
}

func TestAnotherRateActsAtOnce(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l := New()
	if got := passed(l, "ada", Rate{PerMinute: 10}, now, 20); got != 10 {
		t.Fatalf("%d passed", got)
	}
	if got := passed(l, "ada", Rate{PerMinute: 25}, now, 100); got != 15 {
		t.Errorf("%d calls passed of 25 after 10, want 15", got)
	}
	if got := passed(l, "ada", Rate{PerMinute: 20}, now, 1); got != 0 {
		t.Error("a lower rate lets a call pass that the higher one would not")
	}
	if got := passed(l, "ada", Rate{Unlimited: true}, now, 100); got != 100 {
		t.Errorf("%d calls passed without a limit, want 100", got)
	}
	now = now.Add(30 * time.Second) // 15 or so of the 25 are left to be worked off, at 20 a minute
	if got := passed(l, "ada", Rate{PerMinute: 600}, now, 1000); got < 580 || got > 600 {
		t.Errorf("%d calls passed of 600 a minute", got)
	}
}

func TestIdleNamesAreForgotten(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l := New()
	for i := range 10_000 {
		if err := l.Take(fmt.Sprintf("name-%d", i), Rate{}, now); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(2 * time.Minute)
	for i := range 16 * shards { // touches every shard
		if err := l.Take(fmt.Sprintf("other-%d", i), Rate{}, now); err != nil {
			t.Fatal(err)
		}
	}
	if kept := l.names(); kept > 2000 {
		t.Errorf("%d names are still remembered", kept)
	}
}

func (l *Limiter) names() (n int) {
	for i := range l.shards {
		n += len(l.shards[i].buckets)
	}
	return n
}

// TestAMillionNames at one moment, so that none is idle: the memory stays
// bounded, and who is at its limit stays there.
func TestAMillionNames(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l := New()
	if got := passed(l, "greedy", Rate{}, now, 200); got != PerMinute {
		t.Fatalf("%d passed", got)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 1_000_000 {
		if err := l.Take(fmt.Sprintf("name-%d", i), Rate{}, now); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if kept := l.names(); kept > maxNames {
		t.Errorf("%d names are remembered, more than %d", kept, maxNames)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("a million names cost %d MiB", grown>>20)
	}
	if l.Take("greedy", Rate{}, now) == nil {
		t.Error("a flood of names frees one that was at its limit")
	}
}

func TestConcurrentCallersShareOneBucket(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	l := New()
	var wg sync.WaitGroup
	var mu sync.Mutex
	all := 0
	for range 10 {
		wg.Go(func() {
			n := passed(l, "ada", Rate{PerMinute: 50}, now, 100)
			mu.Lock()
			defer mu.Unlock()
			all += n
		})
	}
	wg.Wait()
	if all != 50 {
		t.Errorf("%d calls passed, want 50", all)
	}
}

// set is the same moment, read after the hour was set: the wall clock has jumped
// and the monotonic one has not, which package time lets nobody make otherwise.
func set(t *testing.T, at time.Time, by time.Duration) time.Time {
	t.Helper()
	jumped := at
	*(*uint64)(unsafe.Pointer(&jumped)) += uint64(by/time.Second) << 30 // seconds of a Time with a monotonic reading
	if jumped.Sub(at) != 0 || jumped.Round(0).Sub(at.Round(0)) != by {
		t.Fatalf("package time keeps a Time otherwise now: %s and %s", at, jumped)
	}
	return jumped
}

// Nobody gets more calls, or fewer, since the clock of the host was set.
func TestTheHourDoesNotMatter(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, -time.Hour} {
		l, rate, now := New(), Rate{PerMinute: 60, Burst: 10}, time.Now()
		if got := passed(l, "ada", rate, now, 100); got != 10 {
			t.Fatalf("%d calls pass, not the burst", got)
		}
		now = set(t, now, by)
		if got := passed(l, "ada", rate, now, 100); got != 0 {
			t.Errorf("set by %s: %d calls pass at the same moment", by, got)
		}
		if got := passed(l, "ada", rate, now.Add(5*time.Second), 100); got != 5 {
			t.Errorf("set by %s: %d calls pass 5 s later, not 5", by, got)
		}
	}
}
