package events

import (
	"context"
	"errors"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// bookmarkEvery is after how long of nothing else a watch tells how far it is.
	bookmarkEvery = 30 * time.Second
	// pageFacts and pageRevisions bound one reading of etcd's history.
	pageFacts, pageRevisions = 256, 20000
)

// Request says what a watch is to be told.
type Request struct {
	// After is the cursor to go on after; empty: from now on; Oldest: all there is.
	After string
	// UntilNow ends the watch once all that had happened when it began is told.
	UntilNow bool
	// Bookmarks has it told how far it has come.
	Bookmarks bool
	// Keep tells whether a fact is to be told.
	Keep func(*Fact) bool
	// Begun, unless nil, is called once the watch has its place: what becomes true
	// from then on will be told.
	Begun func() error
}

// Watch calls send with each fact after the request's place, in order and without
// loss, until send fails or ctx ends. It has a place in the history and no buffer:
// however slowly a caller reads, it costs a replica nothing but reading etcd's
// history again. It ends with FailedPrecondition EVENTS_LOST where that no longer
// reaches back so far, with Unavailable REPLICA_STOPS when this replica stops
// (Leave), and with InvalidArgument for what is no cursor.
func (f *Feed) Watch(ctx context.Context, req Request, send func(*Fact) error) error {
	w := &watch{feed: f, req: req, send: send}
	if err := w.begin(ctx); err != nil {
		return err
	}
	idle := time.NewTimer(f.bookmarkEvery)
	defer idle.Stop()
	for {
		more, changed, err := w.advance(ctx)
		switch {
		case err != nil:
			return err
		case w.sent:
			w.sent = false
			idle.Reset(f.bookmarkEvery)
		}
		if req.UntilNow && !w.at.Before(after(w.until)) {
			return w.bookmark()
		}
		if more {
			changed = closed
		}
		select {
		case <-f.leaving:
			return errdefs.New(errdefs.Unavailable, "REPLICA_STOPS", "this replica stops; the watch goes on at another, after %s", w.at).
				With("cursor", w.at.String()).WithRetry(time.Millisecond)
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-idle.C:
			if err := w.bookmark(); err != nil {
				return err
			}
			idle.Reset(f.bookmarkEvery)
		}
	}
}

// closed is for who need not wait.
var closed = func() chan struct{} { //nolint:gochecknoglobals // constant
	c := make(chan struct{})
	close(c)
	return c
}()

// watch is one Watch at work.
type watch struct {
	feed *Feed
	req  Request
	send func(*Fact) error
	// at is how far it has come, until the revision where it may end.
	at    Cursor
	until int64
	sent  bool
}

// begin finds the place where the watch begins.
func (w *watch) begin(ctx context.Context) error {
	for {
		w.feed.mu.Lock()
		ready, changed := w.feed.upTo > 0, w.feed.changed
		w.feed.mu.Unlock()
		if ready {
			break
		}
		select {
		case <-changed:
		case <-w.feed.leaving:
			return errdefs.New(errdefs.Unavailable, "REPLICA_STOPS", "this replica stops; ask another").WithRetry(time.Millisecond)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := w.place(ctx); err != nil {
		return err
	}
	if w.req.Begun != nil {
		if err := w.req.Begun(); err != nil {
			return err
		}
	}
	return w.bookmark()
}

// place reads the cursor that the watch was told, and asks for the latest revision.
func (w *watch) place(ctx context.Context) error {
	var err error
	if w.until, err = w.feed.history.Latest(ctx); err != nil {
		return unreadable(ctx, err)
	}
	switch w.req.After {
	case "":
		w.at = after(w.until)
	case Oldest:
		oldest, err := w.feed.history.Oldest(ctx)
		if err != nil {
			return unreadable(ctx, err)
		}
		w.at = Cursor{Revision: oldest}
	default:
		if w.at, err = ParseCursor(w.req.After); err != nil {
			return err
		}
		if after(w.until).Before(Cursor{Revision: w.at.Revision}) {
			oldest, err := w.feed.history.Oldest(ctx)
			if err != nil {
				return unreadable(ctx, err)
			}
			return lost(w.at, oldest, "it is of a history that this cluster does not have, such as that before a restore")
		}
	}
	return nil
}

// advance tells what comes next, as far as it is known; more says that there may be
// more at once, otherwise changed is closed when there may be.
func (w *watch) advance(ctx context.Context) (more bool, changed <-chan struct{}, err error) {
	facts, to, changed, ok := w.feed.next(w.at, pageFacts)
	if first, _ := w.feed.span(); !ok && first == 0 {
		return false, changed, nil // the feed begins anew
	}
	if !ok {
		if facts, to, err = w.feed.page(ctx, w.at, w.req.Keep); err != nil {
			return false, nil, err
		}
	}
	for _, fact := range facts {
		if !w.req.Keep(fact) {
			continue
		}
		if err := w.send(fact); err != nil {
			return false, nil, err
		}
		w.sent = true
	}
	w.at = to
	return !ok || len(facts) > 0, changed, nil
}

// bookmark tells how far the watch has come, where that was asked for.
func (w *watch) bookmark() error {
	if !w.req.Bookmarks {
		return nil
	}
	now := time.Now()
	return w.send(&Fact{Cursor: w.at, Owner: everybody(), Event: &debvisorv1.Event{
		Cursor: w.at.String(), Revision: w.at.Revision, Kind: Bookmark, Severity: info,
		Time: &debvisorv1.Timestamp{Seconds: now.Unix(), Nanos: int32(now.Nanosecond())}, //nolint:gosec // below 1e9
	}})
}

// errPage ends the reading of a page.
var errPage = errors.New("the page is full")

// page reads from etcd's history what the feed has no longer at hand: facts after a
// cursor that are kept, and the place after them.
func (f *Feed) page(ctx context.Context, from Cursor, keep func(*Fact) bool) (facts []*Fact, to Cursor, err error) {
	select {
	case f.readers <- struct{}{}:
		defer func() { <-f.readers }()
	case <-f.leaving:
		return nil, from, nil
	case <-ctx.Done():
		return nil, from, ctx.Err()
	}
	first, _ := f.span()
	to, seen := from, 0
	err = f.history.Follow(ctx, from.Revision, func(r store.Revision) error {
		if r.Number >= first {
			if to = (Cursor{Revision: first}); to.Before(from) {
				to = from // the feed has begun anew meanwhile: what was told is not told again
			}
			return errPage
		}
		all, err := f.derive(ctx, r)
		if err != nil {
			return err
		}
		for _, fact := range all {
			if from.Before(fact.Cursor) && keep(fact) {
				facts = append(facts, fact)
			}
		}
		seen++
		return nil
	}, func(revision int64) error {
		if to = after(revision); revision+1 >= first || len(facts) >= pageFacts || seen >= pageRevisions {
			return errPage
		}
		select {
		case <-f.leaving:
			return errPage
		default:
			return nil
		}
	})
	if compacted, ok := errors.AsType[*store.CompactedError](err); ok {
		return nil, from, lost(from, compacted.Oldest, "etcd has compacted it")
	}
	if errors.Is(err, errPage) {
		return facts, to, nil
	}
	return nil, from, unreadable(ctx, err)
}

// lost says that what followed a cursor is gone.
func lost(at Cursor, oldest int64, why string) error {
	first := Cursor{Revision: oldest}.String()
	return errdefs.New(errdefs.FailedPrecondition, "EVENTS_LOST",
		"what followed the cursor %s is not known any more: %s; look at the cluster as it is and go on after %s", at, why, first).
		With("cursor", at.String()).With("oldest", first)
}

// unreadable is that etcd's history cannot be read at the moment, or that nobody
// waits for it any more.
func unreadable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errdefs.New(errdefs.Unavailable, "HISTORY_UNREADABLE", "the history of events cannot be read at the moment").WithRetry(time.Second).WithCause(err)
}
