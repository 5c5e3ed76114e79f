package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/debvisor/debvisor/shared/auditlog"
)

// benchDir is where the benchmarks write: on a disk, as the log is.
func benchDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("", "audit-bench")
	must(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

var benchEvent = Event{
	Kind: Call, TraceID: "0123456789abcdef0123456789abcdef", Principal: "operator", Credential: "certificate:1234", Peer: "192.0.2.1",
	Method: "/debvisor.v1.MigrationService/MigrateVM", Args: "vm=web1 target=node-2",
}

// callers is how many make changes at once.
const callers = 64

// perSecond tells how many changes a second callers make for so long.
func perSecond(d time.Duration, change func()) float64 {
	var made atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for range callers {
		wg.Go(func() {
			for time.Since(began) < d {
				change()
				made.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(made.Load()) / time.Since(began).Seconds()
}

// grouped is a change as the log makes it: those that come together share a sync.
func grouped(b *testing.B, dir string) func() {
	b.Helper()
	l, _ := open(b, Config{Path: filepath.Join(dir, "grouped.log")})
	return func() {
		e := benchEvent
		e.Time = time.Now()
		l.Add(&e)
		if err := l.Sync(b.Context()); err != nil {
			b.Error(err)
		}
	}
}

// each is the baseline: the same lines, each with a sync of its own.
func each(b *testing.B, dir string) func() {
	b.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "each.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	must(b, err)
	b.Cleanup(func() { _ = f.Close() })
	var mu sync.Mutex
	var head auditlog.Head
	return func() {
		e := benchEvent
		e.Time = time.Now()
		mu.Lock()
		defer mu.Unlock()
		line := e.append(auditlog.AppendLink(nil, head.Sequence+1, head.Hash), "r1")
		head = auditlog.Head{Sequence: head.Sequence + 1, Hash: auditlog.HashOf(line[:len(line)-1])}
		if _, err := f.Write(line); err != nil {
			b.Error(err)
		}
		if err := f.Sync(); err != nil {
			b.Error(err)
		}
	}
}

// BenchmarkGroupVsEach is what it is worth that changes share a sync: turns of
// A B B A, of which the median counts.
func BenchmarkGroupVsEach(b *testing.B) {
	const turns, turn = 7, 300 * time.Millisecond
	dir := benchDir(b)
	together, alone := grouped(b, dir), each(b, dir)
	for b.Loop() {
		var ratios []float64
		for i := range turns + 1 {
			a1, b1, b2, a2 := perSecond(turn, together), perSecond(turn, alone), perSecond(turn, alone), perSecond(turn, together)
			if i > 0 { // the first one warms up
				ratios = append(ratios, (a1+a2)/(b1+b2))
			}
		}
		slices.Sort(ratios)
		b.ReportMetric(ratios[turns/2], "group/each")
	}
}

// BenchmarkAdd is what a read's event costs its caller.
func BenchmarkAdd(b *testing.B) {
	l, _ := open(b, Config{Path: filepath.Join(benchDir(b), "audit.log")})
	b.ReportAllocs()
	for b.Loop() {
		e := benchEvent
		l.Add(&e)
	}
}

// BenchmarkLink is what tying a line to the chain costs the writer.
func BenchmarkLink(b *testing.B) {
	line := benchEvent.append(nil, "r1")
	w := &writer{}
	b.ReportAllocs()
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		w.tail = w.tail[:0]
		w.link(line)
	}
}

// BenchmarkVerify checks a log of 20,000 lines.
func BenchmarkVerify(b *testing.B) {
	path := filepath.Join(benchDir(b), "audit.log")
	l, stop := open(b, Config{Path: path})
	for i := range 20_000 {
		e := benchEvent
		e.Operation = fmt.Sprint(i)
		l.Add(&e)
	}
	stop()
	info, err := os.Stat(path)
	must(b, err)
	b.SetBytes(info.Size())
	for b.Loop() {
		isWhole(b, l.Head(), path)
	}
}
