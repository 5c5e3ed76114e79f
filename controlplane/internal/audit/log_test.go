package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// fakeDisk is a file whose failures and delays a test decides.
type fakeDisk struct {
	mu                 sync.Mutex
	written            bytes.Buffer
	synced             int // bytes
	syncs              int
	fail               error
	torn               bool
	stuck              chan struct{}
	failSync, failMend error
}

func (d *fakeDisk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		n := 0
		if d.torn {
			n = len(p) / 2
		}
		d.written.Write(p[:n])
		return n, d.fail
	}
	return d.written.Write(p)
}

func (d *fakeDisk) Sync() error {
	d.mu.Lock()
	stuck := d.stuck
	d.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failSync != nil {
		return d.failSync
	}
	d.synced, d.syncs = d.written.Len(), d.syncs+1
	return nil
}

func (d *fakeDisk) Mend(int) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failMend != nil {
		return 0, d.failMend
	}
	d.written.Truncate(d.synced)
	return 0, nil
}

func (d *fakeDisk) Close() error { return nil }

func nullLog() hclog.Logger { return hclog.NewNullLogger() }

func cancellable() (context.Context, context.CancelFunc) {
	return context.WithCancel(context.Background())
}

func logOn(d *fakeDisk) *Log {
	return newLog(Config{Replica: "r1", Log: hclog.NewNullLogger()}, newDisk(d, nil), "")
}

func (d *fakeDisk) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

func run(t *testing.T, l *Log) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func lines(t *testing.T, b []byte) []map[string]any {
	t.Helper()
	var all []map[string]any
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		var m map[string]any
		if err := json.Unmarshal(s.Bytes(), &m); err != nil {
			t.Fatalf("%q: %v", s.Text(), err)
		}
		all = append(all, m)
	}
	return all
}

func TestLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, err := Open(Config{Path: path, Replica: "r1", Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, l)
	nasty := "a\"b\\c\n\x00é\xff"
	l.Add(&Event{Time: time.Unix(1, 5000), Kind: Call, TraceID: "t", Principal: nasty, Method: "/m", Args: "a=1"})
	l.Add(&Event{Kind: Result, Code: "OK", Duration: 1500 * time.Microsecond})
	if err := l.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := lines(t, b)
	if len(all) != 3 || all[0]["event"] != "audit_log_opened" {
		t.Fatalf("%s", b)
	}
	if all = all[1:]; all[0]["event"] != "rpc_call" || all[0]["replica"] != "r1" || all[0]["time"] != "1970-01-01T00:00:01.000005Z" ||
		all[0]["args"] != "a=1" || all[1]["duration_ms"] != 1.5 || all[1]["principal"] != nil {
		t.Errorf("%s", b)
	}
	if err := l.Sync(t.Context()); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("a change after the end: %v", err)
	}
}

func TestChangesShareOneSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDisk{stuck: make(chan struct{})}
		l := logOn(d)
		stop := run(t, l)
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				l.Add(&Event{Kind: Call, Method: fmt.Sprint(i)})
				if err := l.Sync(t.Context()); err != nil {
					t.Error(err)
				}
				d.mu.Lock()
				defer d.mu.Unlock()
				if !bytes.Contains(d.written.Bytes()[:d.synced], fmt.Appendf(nil, `"method":"%d"`, i)) {
					t.Errorf("change %d went on before its line was on disk", i)
				}
			})
		}
		synctest.Wait() // all wait; one sync hangs
		close(d.stuck)
		d.set(func() { d.stuck = nil })
		wg.Wait()
		if d.syncs > 3 {
			t.Errorf("%d syncs for 100 changes that came together", d.syncs)
		}
		stop()
	})
}

func TestReadsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDisk{}
		l := logOn(d)
		stop := run(t, l)
		l.Add(&Event{Kind: Call})
		time.Sleep(2 * flushEvery) // the fake clock's
		synctest.Wait()
		if d.written.Len() == 0 || d.syncs != 0 {
			t.Errorf("%d bytes written, %d syncs", d.written.Len(), d.syncs)
		}
		stop()
	})
}

func TestADiskThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDisk{fail: errors.New("no space left"), torn: true}
		l := logOn(d)
		stop := run(t, l)
		l.Add(&Event{Kind: Call, Method: "first"})
		if err := l.Sync(t.Context()); !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("a change on a disk that is full: %v", err)
		}
		if l.Healthy() == nil {
			t.Error("the log says it is well")
		}
		l.Add(&Event{Kind: Call, Method: "second"})
		d.set(func() { d.fail = nil })
		if err := l.Sync(t.Context()); err != nil || l.Healthy() != nil {
			t.Errorf("after the disk has recovered: %v, %v", err, l.Healthy())
		}
		stop()
		if all := lines(t, d.written.Bytes()); len(all) != 2 || all[0]["method"] != "first" || all[1]["method"] != "second" {
			t.Errorf("%s", d.written.Bytes())
		}
	})
}

func TestADiskThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDisk{stuck: make(chan struct{})}
		l := logOn(d)
		stop := run(t, l)
		began := time.Now()
		if err := l.Sync(t.Context()); !errdefs.Is(err, errdefs.Unavailable) || time.Since(began) > syncTimeout {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		if l.Healthy() == nil {
			t.Error("the log says it is well")
		}
		if err := l.Sync(t.Context()); !errdefs.Is(err, errdefs.Unavailable) || time.Since(began) > syncTimeout {
			t.Errorf("another change, after %s: %v", time.Since(began), err)
		}
		event := &Event{Kind: Call, Reason: string(bytes.Repeat([]byte("m"), maxReason))}
		kept := 0
		for range 2 * maxBacklog / maxReason {
			if l.Add(event) {
				kept++
			}
		}
		l.mu.Lock()
		if waiting := len(l.next.lines) + l.backlog; waiting > maxBacklog*3/2 || l.lost != 2*maxBacklog/maxReason-kept || l.lost == 0 {
			t.Errorf("%d bytes wait, %d events are kept, %d lost", waiting, kept, l.lost)
		}
		l.mu.Unlock()
		close(d.stuck)
		time.Sleep(2 * flushEvery)
		if l.Add(event); l.Healthy() != nil {
			t.Error("the log does not recover")
		}
		stop()
		all := lines(t, d.written.Bytes())
		if last := all[len(all)-2]; len(all) != kept+2 || last["event"] != string(EventsLost) {
			t.Errorf("%d lines of %d events, the last but one %.300v", len(all), kept, last)
		}
	})
}
