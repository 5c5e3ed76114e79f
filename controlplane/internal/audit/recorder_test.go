package audit

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/auditlog"
)

// cell is a replica's log with a real etcd.
type cell struct {
	t     *testing.T
	view  *store.View
	store *store.Store
}

func newCell(t *testing.T) *cell {
	t.Helper()
	client := storetest.Client(t)
	c := &cell{t: t, view: store.NewView(client, nullLog()), store: store.New(client)}
	must(t, c.store.Prepare(t.Context()))
	background(t, c.view.Run)
	<-c.view.Ready()
	return c
}

// background runs something until it is stopped, or the test ends.
func background(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := cancellable()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(stop)
	return stop
}

// record records a log's head.
func (c *cell) record(l *Log) (stop func()) {
	r := &Recorder{Log: l, Replica: "r1", View: c.view, Store: c.store, Logger: nullLog()}
	return background(c.t, r.Run)
}

// recorded is what etcd has.
func (c *cell) recorded() auditlog.Head { return HeadOf(c.view.Current().AuditHeads["r1"].Value) }

func (c *cell) awaits(head auditlog.Head) {
	c.t.Helper()
	eventually(c.t, "etcd has the head", func() bool { return c.recorded() == head })
}

func TestHeadIsRecorded(t *testing.T) {
	c, path := newCell(t), logFile(t)
	l, stop := open(t, Config{Path: path})
	end := c.record(l)
	change(t, l, "first")
	c.awaits(l.Head())
	l.Add(&Event{Time: time.Now(), Kind: Result}) // nobody waits for a read's line, and yet
	eventually(t, "it is on disk", func() bool { return l.Head().Sequence == 3 })
	c.awaits(l.Head())
	revision := c.view.Current().AuditHeads["r1"].ModRevision
	c.put("other", &storev1.AuditHead{Sequence: 1})
	if now := c.view.Current().AuditHeads["r1"].ModRevision; now != revision {
		t.Error("a head that is the same is written again")
	}
	l.Add(&Event{Kind: Result})
	stop()
	end()
	c.awaits(l.Head())
	isWhole(t, c.recorded(), path)
}

func (c *cell) put(replica string, head *storev1.AuditHead) {
	c.t.Helper()
	revision, err := c.store.Commit(c.t.Context(), store.Change{Puts: []store.Put{store.PutProto(store.AuditHeadKey(replica), head)}})
	must(c.t, err)
	must(c.t, c.view.Await(c.t.Context(), revision))
}

func TestALogThatWasCutSaysSo(t *testing.T) {
	c := newCell(t)
	for name, cut := range map[string]func(path string, content []byte) error{
		"lost":    func(path string, _ []byte) error { return os.Remove(path) },
		"emptied": func(path string, _ []byte) error { return os.Truncate(path, 0) },
		"its end": func(path string, content []byte) error {
			return os.Truncate(path, int64(bytes.LastIndexByte(content[:len(content)-1], '\n')+1))
		},
		"last bytes": func(path string, content []byte) error { return os.Truncate(path, int64(len(content)-5)) },
	} {
		t.Run(name, func(t *testing.T) {
			revision, err := c.store.Commit(t.Context(), store.Change{Deletes: []string{store.AuditHeadKey("r1")}})
			must(t, err)
			must(t, c.view.Await(t.Context(), revision))
			path := logFile(t)
			l, stop := open(t, Config{Path: path})
			end := c.record(l)
			change(t, l, "first")
			change(t, l, "second")
			stop()
			end()
			c.awaits(l.Head())
			gone := l.Head()
			must(t, cut(path, read(t, path)))
			l, stop = open(t, Config{Path: path})
			end = c.record(l)
			eventually(t, "the log says so", func() bool { return bytes.Contains(read(t, path), []byte(gone.Hash.String())) })
			eventually(t, "etcd has another head", func() bool { return c.recorded() != gone })
			r, err := l.Verify(t.Context(), c.recorded())
			if err != nil || r.Whole() || !strings.Contains(r.Finding, "etcd knows of line 3 of this log") {
				t.Errorf("%+v, %v", r, err)
			}
			end()
			stop()
		})
	}
}

func TestAnOrdinaryRestartIsNoLoss(t *testing.T) {
	c, path := newCell(t), logFile(t)
	for i := range 3 {
		l, stop := open(t, Config{Path: path})
		end := c.record(l)
		change(t, l, "first")
		c.awaits(l.Head())
		change(t, l, "after the head")
		if i == 1 {
			must(t, os.Rename(path, path+".1"))
			l.Reopen()
			change(t, l, "in another file")
		}
		end() // before the log, as if killed: etcd's head is behind
		stop()
	}
	if bytes.Contains(read(t, path), []byte(LogLost)) {
		t.Errorf("%s", read(t, path))
	}
	isWhole(t, auditlog.Head{}, path+".1", path)
}

// TestALogThatCannotBeCompared cuts the end off a packed file, so that nobody can
// tell whether the line that etcd knows was there.
func TestALogThatCannotBeCompared(t *testing.T) {
	c, path := newCell(t), logFile(t)
	l, stop := open(t, Config{Path: path})
	end := c.record(l)
	for i := range 100 {
		change(t, l, fmt.Sprint(i))
	}
	stop()
	end()
	gone := l.Head()
	c.awaits(gone)
	packed := gzipped(t, read(t, path))
	must(t, os.WriteFile(path+".1.gz", packed[:len(packed)-300], 0o600))
	must(t, os.Remove(path))
	l, stop = open(t, Config{Path: path})
	c.record(l)
	eventually(t, "the log says so", func() bool { return bytes.Contains(read(t, path), []byte(gone.Hash.String())) })
	eventually(t, "etcd has another head", func() bool { return c.recorded() != gone })
	r, err := l.Verify(t.Context(), c.recorded())
	if err != nil || r.Whole() || r.File != path+".1.gz" || !strings.Contains(r.Finding, "unpacking") || r.Findings < 2 {
		t.Errorf("%+v, %v", r, err)
	}
	stop()
}

// TestWhatTheLogLacksIsSaidBeforeItIsReplaced has a disk that fails when etcd is
// found to know more.
func TestWhatTheLogLacksIsSaidBeforeItIsReplaced(t *testing.T) {
	c := newCell(t)
	d := &fakeDisk{}
	l := newLog(Config{Path: logFile(t), Replica: "r1", Log: nullLog()}, newDisk(d, nil), "")
	stop := run(t, l)
	change(t, l, "first")
	c.put("r1", &storev1.AuditHead{Sequence: 9, Hash: bytes.Repeat([]byte{7}, 32), At: timestamppb.Now()})
	d.set(func() { d.fail = unix.EIO })
	r := &Recorder{Log: l, Replica: "r1", View: c.view, Store: c.store, Logger: nullLog()}
	for range 2 {
		if foreign := r.record(t.Context()); foreign || c.recorded().Sequence != 9 {
			t.Fatal("what etcd knows is replaced, and nothing tells of it")
		}
	}
	d.set(func() { d.fail = nil })
	eventually(t, "it is told", func() bool { return r.record(t.Context()) })
	eventually(t, "etcd has the head", func() bool { r.record(t.Context()); return c.recorded() == l.Head() })
	stop()
	if n := bytes.Count(d.written.Bytes(), []byte(LogLost)); n != 1 {
		t.Errorf("the log says so %d times", n)
	}
}

// TestACopyOfAReplica lets two write as one replica.
func TestACopyOfAReplica(t *testing.T) {
	c, path := newCell(t), logFile(t)
	l, _ := open(t, Config{Path: path})
	c.record(l)
	change(t, l, "first")
	c.awaits(l.Head())
	c.put("r1", &storev1.AuditHead{Sequence: 2, Hash: bytes.Repeat([]byte{7}, 32), At: timestamppb.Now()})
	change(t, l, "second")
	eventually(t, "the log says so", func() bool { return bytes.Contains(read(t, path), []byte(`"event":"audit_log_lost"`)) })
	if c.recorded().Hash[0] != 7 {
		t.Error("what another wrote is overwritten at once")
	}
}

// TestAnAnswerThatWasLost has a write applied that nobody answered for.
func TestAnAnswerThatWasLost(t *testing.T) {
	c, path := newCell(t), logFile(t)
	l, _ := open(t, Config{Path: path})
	change(t, l, "first")
	r := &Recorder{Log: l, Replica: "r1", View: c.view, Store: deaf{c.store}, Logger: nullLog()}
	r.record(t.Context())
	c.awaits(l.Head())
	r.Store = c.store
	change(t, l, "second")
	if foreign := r.record(t.Context()); foreign {
		t.Error("its own head is another's")
	}
	r.record(t.Context())
	c.awaits(l.Head())
	isWhole(t, c.recorded(), path)
}

// deaf applies changes and loses the answers.
type deaf struct{ *store.Store }

func (d deaf) Commit(ctx context.Context, change store.Change) (int64, error) {
	if _, err := d.Store.Commit(ctx, change); err != nil {
		return 0, err
	}
	return 0, context.DeadlineExceeded
}
