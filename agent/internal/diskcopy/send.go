package diskcopy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/agent/internal/pace"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	retrySoon = 50 * time.Millisecond
	retryLate = 2 * time.Second
)

// CodeRefused is the error code of a copy that the target does not take.
const CodeRefused = "DISK_REFUSED"

// CodeChanged is the error code of a copy whose source is not what it was.
const CodeChanged = "DISK_CHANGED"

// finalError is one that no further attempt can put right.
type finalError struct{ error }

func (f finalError) Unwrap() error { return f.error }

func final(err error) error { return finalError{err} }

// Send copies the source's file f to the target, over as many connections as it
// takes, until the target has it whole or ctx ends. It returns an error at once
// where trying again is no use: the target refuses (FailedPrecondition), or the
// source cannot be read, has more than f.Size bytes, or changes meanwhile.
func Send(ctx context.Context, dial Dial, f File, o Options) (Result, error) {
	s := &sending{f: f, o: o.whole(), pace: &pace.Pace{Limit: o.Limit}}
	if err := s.open(); err != nil {
		return s.result, fmt.Errorf("copying %s: %w", f, err)
	}
	defer func() { _ = s.file.Close() }()
	for wait := retrySoon; ; wait = min(2*wait, retryLate) {
		before := s.result.Sent
		err := s.attempt(ctx, dial)
		if err == nil {
			return s.result, nil
		}
		var f finalError
		if ctx.Err() != nil || errors.As(err, &f) {
			return s.result, fmt.Errorf("copying %s: %w", s.f, errors.Join(err, ctx.Err()))
		}
		if s.result.Sent > before {
			wait = retrySoon
		}
		s.o.Log.Warn("a copy was cut off, and goes on", "disk", s.f.Target, "again_in", wait, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// whole fills in what may be left out.
func (o Options) whole() Options {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Progress == nil {
		o.Progress = func(uint64, uint64) {}
	}
	return o
}

// sending is one file on its way.
type sending struct {
	f      File
	o      Options
	file   *os.File
	size   uint64
	stamp  unix.Timespec // when the file was last written
	pace   *pace.Pace
	result Result
}

func (s *sending) open() error {
	var err error
	if s.file, err = os.Open(s.f.Path); err != nil {
		return err
	}
	if s.size, s.stamp, err = s.look(); err == nil && s.f.Size > 0 && s.size > s.f.Size {
		err = errdefs.New(errdefs.FailedPrecondition, CodeChanged, "%s has %d bytes, more than the %d that were planned", s.f, s.size, s.f.Size)
	}
	if err != nil {
		return errors.Join(err, s.file.Close())
	}
	s.result.Size = s.size
	return nil
}

// look tells the file's size, and when it was last written.
func (s *sending) look() (uint64, unix.Timespec, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(s.file.Fd()), &st); err != nil {
		return 0, st.Mtim, err
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFREG && !s.f.Block:
		return uint64(st.Size), st.Mtim, nil
	case kind == unix.S_IFBLK && s.f.Block:
		size, err := s.file.Seek(0, io.SeekEnd)
		return uint64(size), unix.Timespec{}, err
	default:
		return 0, st.Mtim, fmt.Errorf("not a %s", kindOf(s.f))
	}
}

func kindOf(f File) string {
	if f.Block {
		return "block device"
	}
	return "regular file"
}

// attempt copies over one connection.
func (s *sending) attempt(ctx context.Context, dial Dial) error {
	s.result.Attempts++
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	w := newWire(conn)
	if err = w.sendHello(hello{s.f.Target, s.size}); err == nil {
		err = s.expect(w, msgWelcome)
	}
	if err == nil {
		err = s.copy(ctx, w)
	}
	if err != nil && !errors.As(err, new(finalError)) {
		err = errors.Join(err, s.lastWord(w))
	}
	return err
}

// lastWord looks for a refusal that came while this side was sending.
func (s *sending) lastWord(w *wire) error {
	hangUp := time.AfterFunc(retryLate, func() { _ = w.conn.Close() })
	defer hangUp.Stop()
	for {
		switch kind, err := s.hear(w); {
		case errors.As(err, new(finalError)):
			return err
		case err != nil:
			return nil
		case kind == msgHave:
			if _, err := w.in.Discard(8 + hashSize); err != nil {
				return nil
			}
		case kind != msgWelcome && kind != msgHaveEnd:
			return nil
		}
	}
}

// expect reads a message of that kind, or the target's refusal.
func (s *sending) expect(w *wire, want byte) error {
	kind, err := s.hear(w)
	if err == nil && kind != want {
		err = fmt.Errorf("message %q instead of %q", kind, want)
	}
	return err
}

// hear reads the next message's kind; a refusal is an error.
func (s *sending) hear(w *wire) (byte, error) {
	kind, err := w.next()
	if err != nil || kind != msgRefuse {
		return kind, err
	}
	reason, err := w.readRefusal()
	if err != nil {
		return 0, err
	}
	return 0, final(errdefs.New(errdefs.FailedPrecondition, CodeRefused, "the target refuses: %s", reason))
}

// copy sends what the target has not, in order.
func (s *sending) copy(ctx context.Context, w *wire) error {
	source, all := newContent(s.file, s.size), newSum(s.size)
	there := &haves{s: s, w: w}
	alive := time.Now()
	stop := func() error {
		if time.Since(alive) > aliveEvery {
			alive = time.Now()
			if err := w.send([]byte{msgAlive}); err != nil {
				return err
			}
		}
		return ctx.Err()
	}
	for {
		index, chunk, err := source.read(stop)
		ended := errors.Is(err, io.EOF)
		if err != nil && !ended {
			return s.readError(ctx, err)
		}
		if ended {
			index = chunks(s.size)
		}
		// What the target has before, in places that are all zeros here, goes.
		if err := there.until(index, func(i uint64) error { return w.send([]byte{msgZero}, u64(i)) }); err != nil {
			return err
		}
		if ended {
			break
		}
		d := sha256.Sum256(chunk)
		all.add(index, d)
		if has, some := there.take(index); !some || has != d {
			if err := s.data(ctx, w, index, chunk, d, some); err != nil {
				return err
			}
		}
		s.o.Progress(index*chunkSize+uint64(len(chunk)), s.size)
	}
	return s.finish(w, all.digest())
}

// readError keeps apart the connection's errors, and the source's, which are
// final.
func (s *sending) readError(ctx context.Context, err error) error {
	var path *os.PathError
	if ctx.Err() == nil && (errors.As(err, &path) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return final(err)
	}
	return err
}

// data sends the blocks of a chunk that are not all zeros.
func (s *sending) data(ctx context.Context, w *wire, index uint64, chunk []byte, d digest, clear bool) error {
	mask := maskOf(chunk)
	var flags byte
	if clear {
		flags = flagClear
	}
	if err := w.send([]byte{msgData}, u64(index), []byte{flags}, d[:], mask[:]); err != nil {
		return err
	}
	for from := 0; from < len(chunk); {
		if !mask.has(from / blockSize) {
			from += blockSize
			continue
		}
		to := from
		for to < len(chunk) && mask.has(to/blockSize) {
			to += blockSize
		}
		to = min(to, len(chunk))
		if err := s.run(ctx, w, chunk[from:to]); err != nil {
			return err
		}
		from = to
	}
	return w.out.Flush()
}

// run sends a run of bytes at the pace that is allowed.
func (s *sending) run(ctx context.Context, w *wire, p []byte) error {
	for len(p) > 0 {
		n := min(len(p), s.pace.Piece(chunkSize))
		if err := s.pace.Wait(ctx, n); err != nil {
			return err
		}
		if _, err := w.out.Write(p[:n]); err != nil {
			return err
		}
		if n < pace.PieceMost { // slow: let it be seen that something comes
			if err := w.out.Flush(); err != nil {
				return err
			}
		}
		s.result.Sent += uint64(n)
		p = p[n:]
	}
	return nil
}

// finish has the target check the whole, and tells it that its word was heard.
func (s *sending) finish(w *wire, d digest) error {
	size, stamp, err := s.look()
	if err != nil {
		return final(err)
	}
	if size != s.size || stamp != s.stamp {
		return final(errdefs.New(errdefs.FailedPrecondition, CodeChanged, "%s was written to while it was copied", s.f))
	}
	if err := w.send([]byte{msgSum}, d[:]); err != nil {
		return err
	}
	if err := s.expect(w, msgSum); err != nil {
		return err
	}
	var got digest
	if err := w.read(got[:]); err != nil {
		return err
	}
	if got != d {
		return fmt.Errorf("the target has %x, not %x", got, d)
	}
	s.result.Sum = hex.EncodeToString(d[:])
	s.o.Progress(s.size, s.size)
	_ = w.send([]byte{msgBye}) // it has said what matters
	return nil
}

// haves are the target's hashes, read as they are needed.
type haves struct {
	s *sending
	w *wire
	// has tells whether at and digest are set: the first chunk that was not
	// passed yet. ended: there is no other.
	has, ended bool
	any        bool // there was one
	at         uint64
	digest     digest
}

// until goes on to the first chunk from index on, and calls other for each before.
func (h *haves) until(index uint64, other func(uint64) error) error {
	for {
		switch {
		case h.has && h.at >= index:
			return nil
		case h.has:
			if err := other(h.at); err != nil {
				return err
			}
		case h.ended:
			return nil
		}
		if err := h.next(); err != nil {
			return err
		}
	}
}

// take gives the target's hash of a chunk, if it has one, and passes it.
func (h *haves) take(index uint64) (digest, bool) {
	if !h.has || h.at != index {
		return digest{}, false
	}
	h.has = false
	return h.digest, true
}

func (h *haves) next() error {
	h.has = false
	if h.ended {
		return nil
	}
	kind, err := h.s.hear(h.w)
	switch {
	case err != nil:
		return err
	case kind == msgHaveEnd:
		h.ended = true
		return nil
	case kind != msgHave:
		return fmt.Errorf("message %q among hashes", kind)
	}
	last := h.at
	if h.at, err = h.w.uint64(); err != nil {
		return err
	}
	if h.at >= chunks(h.s.size) || h.any && h.at <= last {
		return fmt.Errorf("hash of chunk %d after that of %d", h.at, last)
	}
	h.has, h.any = true, true
	return h.w.read(h.digest[:])
}
