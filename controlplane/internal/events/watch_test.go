package events_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/controlplane/internal/events"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// world is an etcd with replicas' feeds over it.
type world struct {
	t      *testing.T
	ctx    context.Context //nolint:containedctx // the test's
	client *clientv3.Client
	store  *store.Store
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	client := storetest.Client(t)
	w := &world{t: t, ctx: ctx, client: client, store: store.New(client)}
	if err := w.store.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	return w
}

// feed starts one that keeps so many facts at hand; 0: as many as a replica does.
func (w *world) feed(size int) *events.Feed {
	w.t.Helper()
	f := events.New(store.NewHistory(w.client), hclog.NewNullLogger())
	if size > 0 {
		f = events.NewSized(store.NewHistory(w.client), hclog.NewNullLogger(), size)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.Run(ctx)
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
	})
	// What is committed from now on is told by it.
	w.all(f, "")
	return f
}

func (w *world) commit(c store.Change) int64 {
	w.t.Helper()
	revision, err := w.store.Commit(w.ctx, c)
	if err != nil {
		w.t.Fatal(err)
	}
	return revision
}

// flip writes one more fact: a node's cordon changes.
func (w *world) flip(node string, n int) int64 {
	return w.commit(put(store.NodeKey(node), &storev1.Node{Id: node, Cordoned: n%2 == 0}))
}

func everything(*events.Fact) bool { return true }

// all gives what follows a cursor until now.
func (w *world) all(f *events.Feed, after string) []*events.Fact {
	w.t.Helper()
	facts, err := w.watch(f, events.Request{After: after, UntilNow: true, Keep: everything}, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return facts
}

var errEnough = errors.New("enough")

// watch gives what a watch tells until it ends, or has told so many.
func (w *world) watch(f *events.Feed, req events.Request, enough int) (facts []*events.Fact, err error) {
	err = f.Watch(w.ctx, req, func(fact *events.Fact) error {
		facts = append(facts, fact)
		if len(facts) == enough {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return facts, err
}

func cursors(facts []*events.Fact) (list []string) {
	for _, f := range facts {
		list = append(list, f.Event.GetCursor()+" "+f.Event.GetKind())
	}
	return list
}

// TestAnyReplicaGoesOnAtAnyCursor writes facts, several in one transaction now and
// then, and reads them at one that has all of them at hand, at one that has hardly
// any, and at one that was started afterwards; in pieces of all sizes, each piece at
// another. All tell the same, nothing is lost, nothing comes twice.
func TestAnyReplicaGoesOnAtAnyCursor(t *testing.T) {
	w := newWorld(t)
	feeds := []*events.Feed{w.feed(0), w.feed(5)}
	began := ""
	for i := range 150 {
		revision := w.commit(store.Change{Puts: []store.Put{
			store.PutProto(store.NodeKey(fmt.Sprint("n", i%3)), &storev1.Node{Cordoned: i%2 == 0}),
			store.PutString(store.KeyUseKey(fmt.Sprint(i)), "no fact"),
			store.PutProto(store.StatusKey("n1"), &storev1.NodeStatus{BootId: fmt.Sprint(i), JournalId: fmt.Sprint(i / 2), Liveness: storev1.NodeLiveness(1 + i%3)}),
		}})
		if began == "" {
			began = events.Cursor{Revision: revision}.String()
		}
	}
	feeds = append(feeds, w.feed(0))
	want := cursors(w.all(feeds[0], began))
	if len(want) < 400 || !slices.IsSortedFunc(want, func(a, b string) int { return compareCursors(t, a, b) }) {
		t.Fatalf("%d facts: %v", len(want), want)
	}
	for i, f := range feeds {
		if got := cursors(w.all(f, began)); !slices.Equal(got, want) {
			t.Errorf("feed %d tells %v", i, got)
		}
		if got := cursors(w.all(f, events.Oldest)); !slices.Equal(got[len(got)-len(want):], want) {
			t.Errorf("feed %d tells of the oldest on %v", i, got)
		}
	}
	var got []string
	for at, seed := began, rand.New(rand.NewPCG(7, 7)); len(got) < len(want); {
		f := feeds[seed.IntN(len(feeds))]
		piece, err := w.watch(f, events.Request{After: at, UntilNow: true, Keep: everything}, 1+seed.IntN(40))
		if err != nil || len(piece) == 0 {
			t.Fatalf("after %s: %v, %v", at, piece, err)
		}
		got, at = append(got, cursors(piece)...), piece[len(piece)-1].Event.GetCursor()
	}
	if !slices.Equal(got, want) {
		t.Errorf("in pieces: %v\nwant %v", got, want)
	}
}

func compareCursors(t *testing.T, a, b string) int {
	t.Helper()
	first, _, _ := strings.Cut(a, " ")
	second, _, _ := strings.Cut(b, " ")
	x, err := events.ParseCursor(first)
	y, err2 := events.ParseCursor(second)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	if x.Before(y) {
		return -1
	}
	return 1
}

// TestFromNowOn tells what was committed after the watch had its place, and nothing
// from before.
func TestFromNowOn(t *testing.T) {
	w := newWorld(t)
	f := w.feed(0)
	w.flip("n1", 1)
	begun := make(chan struct{})
	got := make(chan []*events.Fact, 1)
	go func() {
		facts, _ := w.watch(f, events.Request{Keep: everything, Begun: func() error { close(begun); return nil }}, 2)
		got <- facts
	}()
	<-begun
	first := w.flip("n2", 0)
	second := w.flip("n2", 1)
	if facts := <-got; facts[0].Event.GetRevision() != first || facts[len(facts)-1].Event.GetRevision() > second || facts[0].Event.GetResources()[0] != "node/n2" {
		t.Errorf("told %v", cursors(facts))
	}
}

// TestBookmarks has a watch that is told nothing go on without loss.
func TestBookmarks(t *testing.T) {
	w := newWorld(t)
	f := w.feed(0)
	none := func(*events.Fact) bool { return false }
	marks, err := w.watch(f, events.Request{UntilNow: true, Bookmarks: true, Keep: none}, 0)
	if err != nil || len(marks) != 2 || marks[0].Event.GetKind() != events.Bookmark {
		t.Fatalf("%v, %v", marks, err)
	}
	at := marks[1].Event.GetCursor()
	want := w.flip("n1", 0)
	if facts := w.all(f, at); len(facts) != 2 || facts[0].Event.GetRevision() != want {
		t.Errorf("after %s: %v", at, cursors(facts))
	}
	// Where nothing is to be told for long, the place is told.
	f.BookmarkEvery(10 * time.Millisecond)
	marks, err = w.watch(f, events.Request{Bookmarks: true, Keep: none}, 4)
	if err != nil || marks[3].Event.GetRevision() <= want {
		t.Errorf("%v, %v", marks, err)
	}
}

// TestLost tells who goes on after what etcd has compacted that events were lost,
// and from where on it knows all; and who comes with a cursor of another history.
func TestLost(t *testing.T) {
	w := newWorld(t)
	feeds := []*events.Feed{w.feed(2)}
	first := w.flip("n1", 0)
	for i := range 20 {
		w.flip("n1", i+1)
	}
	last := w.flip("n1", 1)
	if _, err := w.client.Compact(w.ctx, last-5, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	feeds = append(feeds, w.feed(0))
	for i, f := range feeds {
		for _, after := range []string{events.Cursor{Revision: first, Index: 1}.String(), "1.0", events.Cursor{Revision: last - 5}.String(), events.Cursor{Revision: last + 100}.String()} {
			_, err := w.watch(f, events.Request{After: after, Keep: everything}, 1)
			e := errdefs.Of(err)
			if e.Kind != errdefs.FailedPrecondition || e.Code != "EVENTS_LOST" {
				t.Errorf("feed %d after %s: %v", i, after, err)
				continue
			}
			if facts := w.all(f, e.Context["oldest"]); len(facts) == 0 || facts[0].Event.GetRevision() != last-4 {
				t.Errorf("feed %d after the oldest %s: %v", i, e.Context["oldest"], cursors(facts))
			}
		}
		if facts := w.all(f, events.Oldest); len(facts) != 5 || facts[0].Event.GetRevision() != last-4 {
			t.Errorf("feed %d: the oldest are %v", i, cursors(facts))
		}
	}
}

// TestSlowWatcher lets a watcher take its time with its first event while more come
// than a replica has at hand: it misses none.
func TestSlowWatcher(t *testing.T) {
	w := newWorld(t)
	f := w.feed(4)
	begun := make(chan struct{})
	more := make(chan struct{})
	got := make(chan []string, 1)
	go func() {
		var seen []string
		_ = f.Watch(w.ctx, events.Request{Keep: everything, Begun: func() error { close(begun); return nil }}, func(fact *events.Fact) error {
			if len(seen) == 0 {
				<-more
			}
			seen = append(seen, fact.Event.GetCursor())
			if len(seen) == 61 {
				return errEnough
			}
			return nil
		})
		got <- seen
	}()
	<-begun
	for i := range 60 {
		w.flip("n1", i)
	}
	w.all(f, "") // the feed has come past them
	close(more)
	if seen := <-got; len(seen) != 61 || !slices.IsSortedFunc(seen, func(a, b string) int { return compareCursors(t, a, b) }) || len(slices.Compact(slices.Clone(seen))) != 61 {
		t.Errorf("%d events: %v", len(seen), seen)
	}
}

// TestLeave ends watches with where to go on.
func TestLeave(t *testing.T) {
	w := newWorld(t)
	f := w.feed(0)
	begun := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := w.watch(f, events.Request{Keep: everything, Begun: func() error { close(begun); return nil }}, 0)
		ended <- err
	}()
	<-begun
	f.Leave()
	f.Leave()
	e := errdefs.Of(<-ended)
	if e.Kind != errdefs.Unavailable || e.Code != "REPLICA_STOPS" || e.RetryAfter == 0 {
		t.Fatalf("ended with %v", e)
	}
	if _, err := events.ParseCursor(e.Context["cursor"]); err != nil {
		t.Error(err)
	}
}

// TestBadInput names the field, the value and what is accepted.
func TestBadInput(t *testing.T) {
	w := newWorld(t)
	f := w.feed(0)
	for _, after := range []string{"x", "1", "1.", ".1", "-1.0", "1.-1", "1.1.1", "99999999999999999999.0", "1.99999999999", " 1.0", "0.0", "0.7"} {
		_, err := w.watch(f, events.Request{After: after, Keep: everything}, 1)
		if e := errdefs.Of(err); e.Kind != errdefs.InvalidArgument || e.Context["field"] != "after" || e.Context["value"] != after {
			t.Errorf("after %q: %v", after, err)
		}
	}
	for _, kinds := range [][]string{nil, {"vm.moved"}, {"vm.*", "node.online"}} {
		if err := events.CheckKinds(kinds); err != nil {
			t.Errorf("%v: %v", kinds, err)
		}
	}
	for _, kind := range []string{"vm.movd", "vm", "v.*", "cursor", ""} {
		if e := errdefs.Of(events.CheckKinds([]string{kind})); e == nil || e.Context["field"] != "kinds" {
			t.Errorf("%q is accepted: %v", kind, e)
		}
	}
}
