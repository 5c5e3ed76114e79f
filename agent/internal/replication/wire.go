package replication

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// headSize is what is before every frame's content: its kind and length.
	headSize = 5
	// frameSize is how much of a stream goes in one frame at most.
	frameSize = 512 << 10
	// maxControl bounds all other frames.
	maxControl = 64 << 10
	// maxCode and maxReason bound what is taken over of the other side's words.
	maxCode   = 64
	maxReason = 1 << 10
)

// The kinds of frames. All but data and signs of life are JSON.
const (
	frameHello   = 'h' // source: what it has come for
	frameState   = 's' // target: what it has; what comes next is the source's to say
	frameBegin   = 'b' // source: a stream begins
	frameData    = 'd' // source: a part of it
	frameEnd     = 'e' // source: that was all of it
	frameStop    = 'x' // source: no more of it comes now
	frameFailed  = 'f' // target: what came was of no use; all until End or Stop is passed over
	frameHold    = 'H' // source: hold the last snapshot
	frameHeld    = 'I' // target: it is held
	frameRelease = 'R' // source: let the older ones go; it is whole
	frameDone    = 'D' // target: it has, and is at its end
	frameBye     = 'B' // source: it knows
	frameGiveUp  = 'G' // either: it failed for good
	frameAlive   = 'a' // either: still at work
)

var (
	// quiet is how long the other side may say nothing; aliveEvery how often a side
	// says something.
	quiet      = 30 * time.Second
	aliveEvery = 5 * time.Second
)

// hello binds the connection to the right's datasets, guid and term.
type hello struct {
	Version                      int
	Job                          string
	SourceDataset, TargetDataset string
	SourceGUID                   uint64
	Epoch                        uint64
	Revision                     int64
}

const wireVersion = 1

// state is what the target has.
type state struct {
	// Have is how many of the steps it has, GUID that of the last one's snapshot.
	Have int
	GUID uint64
	// Token resumes the next step.
	Token string
}

// begin is a stream that is to come.
type begin struct {
	Step             int
	ToGUID, FromGUID uint64
	// Resumed: by the token that the target told of; else it forgets that one.
	Resumed bool
}

// failed is why something did not work on the target.
type failed struct {
	Code, Message string
	// Again: it may work later.
	Again bool
}

// failedOf is what the other side is told of an error.
func failedOf(err error) failed {
	return failed{Code: codeOf(err), Message: messageOf(err), Again: !isDefinite(err) && passing(err)}
}

// err is the error as this side has it.
func (f failed) err() *errdefs.Error {
	kind := errdefs.FailedPrecondition
	if f.Again {
		kind = errdefs.Unavailable
	}
	code := f.Code
	if len(code) > maxCode || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" || code == "" {
		code = zfs.CodeZFS
	}
	return errdefs.New(kind, code, "%s", strings.ToValidUTF8(f.Message[:min(len(f.Message), maxReason)], ""))
}

// link is a connection with frames. One goroutine reads, any may send.
type link struct {
	conn net.Conn
	in   *timed

	mu sync.Mutex // of whole frames
}

func newLink(conn net.Conn) *link { return &link{conn: conn, in: &timed{Conn: conn}} }

// timed bounds how long the other side may stand still. It takes a deadline for no
// read: that asks for the time at every record of 16 KiB, which is a system call of
// some cost on machines without a clock that programs can read by themselves.
type timed struct {
	net.Conn
	reads atomic.Uint64 // odd: one waits
}

func (t *timed) Read(p []byte) (int, error) {
	t.reads.Add(1)
	defer t.reads.Add(1)
	return t.Conn.Read(p)
}

// watch breaks the connection's reading off when one has waited for so long as the
// other side may say nothing, or a little longer, until ctx ends.
func (t *timed) watch(ctx context.Context) {
	const looks = 8
	tick := time.NewTicker(quiet / looks)
	defer tick.Stop()
	for was, same := uint64(0), 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := t.reads.Load()
		if now%2 == 0 || now != was {
			was, same = now, 0
		} else if same++; same == looks {
			_ = t.SetReadDeadline(time.Unix(1, 0))
			return
		}
	}
}

// frame makes a buffer for a frame with room for n bytes.
func newFrame(n int) []byte { return make([]byte, headSize+n) }

// sendData sends the first n bytes of a buffer made by newFrame, which keeps its
// head free.
func (l *link) sendData(buf []byte, n int) error {
	buf[0] = frameData
	binary.BigEndian.PutUint32(buf[1:], uint32(n))
	return l.write(buf[:headSize+n])
}

// send sends a frame of any other kind.
func (l *link) send(kind byte, content any) error {
	buf := newFrame(0)
	if content != nil {
		text, err := json.Marshal(content)
		if err != nil {
			return err
		}
		buf = append(buf, text...)
	}
	buf[0] = kind
	binary.BigEndian.PutUint32(buf[1:], uint32(len(buf)-headSize))
	return l.write(buf)
}

func (l *link) write(p []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.conn.Write(p)
	return err
}

// next reads a frame into buf, whose length bounds it. Signs of life are passed
// over.
func (l *link) next(buf []byte) (kind byte, content []byte, err error) {
	for {
		var head [headSize]byte
		if _, err := io.ReadFull(l.in, head[:]); err != nil {
			return 0, nil, err
		}
		kind, n := head[0], int(binary.BigEndian.Uint32(head[1:]))
		if n > len(buf) || kind != frameData && n > maxControl {
			return 0, nil, fmt.Errorf("a frame %q of %d bytes", kind, n)
		}
		if _, err := io.ReadFull(l.in, buf[:n]); err != nil {
			return 0, nil, unexpected(err)
		}
		if kind != frameAlive {
			return kind, buf[:n], nil
		}
	}
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// keepAlive tells the other side that this one is at work, and watches whether it
// is, until ctx ends, which closes the connection.
func (l *link) keepAlive(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	ctx, end := context.WithCancel(ctx)
	defer end()
	group.Go(func() { l.in.watch(ctx) })
	defer func() { _ = l.conn.Close() }()
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	stop := context.AfterFunc(ctx, func() { _ = l.conn.Close() }) // a frame may be stuck
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if l.send(frameAlive, nil) != nil {
			return
		}
	}
}

// parse reads a frame's content.
func parse[T any](content []byte) (v T, err error) {
	if err = json.Unmarshal(content, &v); err != nil {
		err = fmt.Errorf("not understood: %w", err)
	}
	return v, err
}
