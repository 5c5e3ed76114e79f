package diskcopy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// maxArriving is how many connections are served at once.
	maxArriving = 16
	// linger is how long the target waits, once it has all, for a source whose
	// connection was cut before it knew.
	linger = 5 * time.Second
)

// Receive takes the files that Send sends, each under its Target, until all are
// in their places and the source knows, or has not asked for some seconds. It
// goes on with what a former call with the same ID has left; called again after
// its end it only compares. A file whose name is taken by another is refused, to
// the source too, and ends it with a FailedPrecondition; so does a disk that
// cannot be written.
func Receive(ctx context.Context, l net.Listener, files []File, o Options) error {
	if o.ID == "" {
		return errNoID
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &receiving{o: o.whole(), files: map[string]*arrival{}, end: cancel, slots: make(chan struct{}, maxArriving)}
	for _, f := range files {
		if r.files[f.Target] != nil {
			return fmt.Errorf("two disks %q are to come", f.Target)
		}
		r.files[f.Target] = &arrival{f: f, turn: make(chan struct{}, 1)}
		if err := r.refuseTaken(f); err != nil {
			return err
		}
	}
	if len(files) == 0 {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel(nil)
	group.Go(func() { r.accept(ctx, l, &group) })
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, errAllThere) {
		return err
	}
	return nil
}

// errAllThere ends a Receive well.
var errAllThere = errors.New("all files are there")

// refused is an error that the source is told, and that ends it all.
func refused(err error) error {
	return errdefs.New(errdefs.FailedPrecondition, CodeRefused, "%v", err).WithCause(err)
}

func (r *receiving) refuseTaken(f File) error {
	if f.Block {
		return nil
	}
	if _, err := isDone(f, f.partial(r.o.ID)); err != nil {
		return refused(err)
	}
	return nil
}

// receiving is one call of Receive.
type receiving struct {
	o     Options
	end   context.CancelCauseFunc
	slots chan struct{}

	mu    sync.Mutex
	files map[string]*arrival
	open  int // connections
	late  *time.Timer
}

// arrival is one file that is to come.
type arrival struct {
	f    File
	turn chan struct{} // full while a connection has the file
	// Under receiving.mu: what cuts off the connection that has the file; done:
	// the file is in its place; known: and the source has said that it knows.
	cut         func()
	done, known bool
	at, size    uint64 // how far it is
	wrong       int    // how often the whole was not what it should be
}

func (r *receiving) accept(ctx context.Context, l net.Listener, group *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if err != nil {
			r.end(fmt.Errorf("waiting for disks: %w", err))
			return
		}
		select {
		case r.slots <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		r.came()
		group.Go(func() {
			defer func() { <-r.slots }()
			defer r.went()
			defer func() { _ = conn.Close() }()
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			if err := r.serve(ctx, conn); err != nil && ctx.Err() == nil {
				r.o.Log.Warn("a copy was cut off", "error", err)
			}
		})
	}
}

func (r *receiving) came() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open++
	if r.late != nil {
		r.late.Stop()
		r.late = nil
	}
}

// went ends it all where nothing is left to be done.
func (r *receiving) went() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open--
	done, known := true, true
	for _, a := range r.files {
		done, known = done && a.done, known && a.known
	}
	switch {
	case known:
		r.end(errAllThere)
	case done && r.open == 0:
		r.late = time.AfterFunc(linger, func() { r.end(errAllThere) })
	}
}

// serve takes one file over one connection.
func (r *receiving) serve(ctx context.Context, conn net.Conn) error {
	w := newWire(conn)
	h, err := w.readHello()
	if err != nil {
		return err
	}
	a := r.files[h.name]
	if a == nil {
		return errors.Join(fmt.Errorf("disk %q is not to come", h.name), w.sendRefusal("that disk is not to come"))
	}
	if !r.take(ctx, a, conn) {
		return ctx.Err()
	}
	defer func() { <-a.turn }()
	p, err := openPlace(a.f, r.o.ID, h.size)
	if err != nil {
		return r.refuse(w, err)
	}
	defer func() { _ = p.file.Close() }()
	if err := w.send([]byte{msgWelcome}); err != nil {
		return err
	}
	in := &incoming{r: r, a: a, w: w, p: p, buf: make([]byte, chunkSize)}
	return in.run(ctx)
}

// take has the connection that has the file, which must be an old one, cut off.
func (r *receiving) take(ctx context.Context, a *arrival, conn net.Conn) bool {
	for {
		r.mu.Lock()
		if a.cut != nil {
			a.cut()
		}
		r.mu.Unlock()
		select {
		case a.turn <- struct{}{}:
			r.mu.Lock()
			a.cut = func() { _ = conn.Close() }
			r.mu.Unlock()
			return true
		case <-ctx.Done():
			return false
		case <-time.After(time.Second): // another one came in between
		}
	}
}

// refuse tells the source, waits until it has heard, and ends all.
func (r *receiving) refuse(w *wire, err error) error {
	err = refused(err)
	hangUp := time.AfterFunc(linger, func() { _ = w.conn.Close() })
	defer hangUp.Stop()
	// What it is sending meanwhile is read: it hears nothing before it has sent.
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(io.Discard, w.in)
	}()
	told := w.sendRefusal(err.Error())
	if half, ok := w.conn.(interface{ CloseWrite() error }); ok && told == nil {
		_ = half.CloseWrite()
	}
	<-read
	r.end(err)
	return errors.Join(err, told)
}

// progress tells how far all files together are.
func (r *receiving) progress(a *arrival, done, total uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a.at, a.size = done, total
	done, total = 0, 0
	for _, a := range r.files {
		done, total = done+a.at, total+a.size
	}
	r.o.Progress(done, total)
}
