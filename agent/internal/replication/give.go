package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// frame is one of the target's.
type frame struct {
	kind    byte
	content []byte
}

// heard are the target's frames; closed when the connection has ended, then err
// tells why.
type heard struct {
	frames chan frame
	err    error // once frames is closed
	back   *frame
}

// hear reads the target's frames until the connection ends. It never waits for
// who reads them longer than the connection lasts.
func hear(ctx context.Context, l *link) *heard {
	h := &heard{frames: make(chan frame, 4)}
	go func() {
		defer close(h.frames)
		buf := make([]byte, maxControl)
		for {
			kind, content, err := l.next(buf)
			if err != nil {
				h.err = err
				_ = l.conn.Close() // so that who writes hears of it
				return
			}
			select {
			case h.frames <- frame{kind, append([]byte{}, content...)}:
			case <-ctx.Done():
				h.err = ctx.Err()
				return
			}
		}
	}()
	return h
}

// next waits for a frame of one of those kinds. The target's giving up is a
// definite error.
func (h *heard) next(ctx context.Context, kinds ...byte) (frame, error) {
	if f := h.back; f != nil {
		h.back = nil
		return *f, nil
	}
	select {
	case <-ctx.Done():
		return frame{}, ctx.Err()
	case f, ok := <-h.frames:
		if !ok {
			return frame{}, h.err
		}
		if f.kind == frameGiveUp {
			return frame{}, forsaken(f)
		}
		for _, kind := range kinds {
			if f.kind == kind {
				return f, nil
			}
		}
		return frame{}, fmt.Errorf("a frame %q of the target's that does not belong here", f.kind)
	}
}

// unread has the next frame be this one.
func (h *heard) unread(f frame) { h.back = &f }

// forsaken is why the target has given up.
func forsaken(f frame) error {
	why, err := parse[failed](f.content)
	if err != nil {
		return err
	}
	if why.Code == worker.CodeCancelled {
		return definite{errdefs.New(errdefs.Cancelled, worker.CodeCancelled, "the target's task was cancelled")}
	}
	return definite{why.err()}
}

// giving is one connection to the target.
type giving struct {
	*sender
	l     *link
	heard *heard
}

// session goes on with the run over one connection. nil: all is done.
func (s *sender) session(ctx context.Context, conn net.Conn) error {
	ctx, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	g := &giving{sender: s, l: newLink(conn)}
	group.Go(func() { g.l.keepAlive(ctx) })
	g.heard = hear(ctx, g.l)
	err := g.run(ctx)
	if final(err) {
		_ = g.l.send(frameGiveUp, failedOf(err))
		return err
	}
	if err != nil && ctx.Err() == nil {
		_ = conn.Close()
		// What the target said last counts more than how the connection ended.
		for f := range g.heard.frames {
			if f.kind == frameGiveUp {
				return forsaken(f)
			}
		}
	}
	return err
}

func (g *giving) run(ctx context.Context) error {
	if err := g.l.send(frameHello, helloOf(g.right)); err != nil {
		return err
	}
	st, err := g.state(ctx)
	if err != nil {
		return err
	}
	for g.have < len(g.steps()) {
		if st, err = g.step(ctx, st); err != nil {
			return err
		}
	}
	return g.conclude(ctx)
}

// state takes what the target says it has, and refuses what cannot be: a step that
// was never sent whole, one that it had and has no more, another guid.
func (g *giving) state(ctx context.Context) (state, error) {
	f, err := g.heard.next(ctx, frameState)
	if err != nil {
		return state{}, err
	}
	st, err := parse[state](f.content)
	if err != nil {
		return st, err
	}
	switch {
	case st.Have < 0 || st.Have > len(g.steps()), st.Have < g.have && !g.whole:
		return st, refuse(CodeTargetRefused, "the target claims to have %d steps of %d, and had %d", st.Have, len(g.steps()), g.have)
	case st.Have > 0 && st.GUID != g.steps()[st.Have-1].GetToGuid():
		return st, refuse(CodeTargetRefused, "the target claims to have @%s with the guid %d", g.steps()[st.Have-1].GetTo(), st.GUID)
	case st.Have > g.have && !g.sender.run.Marked(markSent(st.Have-1)):
		return st, refuse(CodeTargetRefused, "the target claims to have @%s, which was not sent", g.steps()[st.Have-1].GetTo())
	}
	g.known = true
	if st.Have > g.have {
		g.have = st.Have
		g.progress.whole(g.have)
		g.trouble = trouble{}
		g.r.pass(pointSendWhole)
	}
	return st, nil
}

// step sends the next step, and gives what the target has then.
func (g *giving) step(ctx context.Context, st state) (state, error) {
	i := g.have
	step := g.steps()[i]
	b := begin{Step: i, ToGUID: step.GetToGuid(), FromGUID: step.GetFromGuid()}
	var at zfs.Token
	if st.Token != "" {
		var err error
		if at, b.Resumed, err = g.resumable(ctx, st.Token, step); err != nil {
			return st, err
		}
	}
	g.progress.begin(i, step, at.Bytes, b.Resumed || g.begun == i+1)
	g.begun = i + 1
	g.r.pass(pointSendBegin)
	f, err := g.stream(ctx, b, st.Token, step)
	if err != nil {
		return st, err
	}
	was := st.Token
	if st, err = g.state(ctx); err != nil {
		return st, err
	}
	if f == nil && st.Have == i {
		return st, refuse(CodeTargetRefused, "the target took all of @%s, and claims not to have it", step.GetTo())
	}
	if f == nil {
		return st, nil
	}
	return st, g.failedStep(ctx, *f, b.Resumed, was, st)
}

// failedStep decides what becomes of a step that the target could not take.
func (g *giving) failedStep(ctx context.Context, f failed, resumed bool, was string, st state) error {
	if resumed && !f.Again && !isFull(f.err()) && g.dead < streamTries {
		// A dead token would be in the way for ever.
		g.log.Warn("what had arrived cannot be gone on with: the step begins anew", "error", f.err())
		g.forget = was
		g.dead++
		return nil
	}
	if err := g.trouble.meet(f, st.Token, g.r.patience); err != nil {
		return err
	}
	g.log.Warn("the target could not take the stream, and will be asked again", "error", f.err())
	g.progress.phase("waiting for the target: " + f.err().Message)
	if !pause(ctx, min(again<<min(g.trouble.tries, 10), againLate)) {
		return ctx.Err()
	}
	return nil
}

// resumable tells whether a token stands for just what is to be sent: a target may
// have made it up (OpenZFS #14153). Else the target forgets it, once.
func (g *giving) resumable(ctx context.Context, token string, step *agentv1.ReplicationStep) (zfs.Token, bool, error) {
	if token == g.forget {
		return zfs.Token{}, false, nil
	}
	at, err := g.r.zfs.DecodeToken(ctx, token)
	if ctx.Err() != nil {
		return at, false, ctx.Err()
	}
	full := g.keep.snapshot(step.GetTo())
	if err == nil && at.Name == full && at.ToGUID == step.GetToGuid() && at.FromGUID == step.GetFromGuid() && at.Raw == g.spec.GetRaw() {
		return at, true, nil
	}
	g.log.Warn("the target's resume token is not for what is to be sent", "planned", full, "token_for", at.Name, "error", err)
	if g.forgotten {
		return at, false, refuse(CodeTargetRefused, "the target asks to resume what is not planned (%.300q), though it was told to forget that", at.Name)
	}
	g.forgotten, g.forget = true, token
	return zfs.Token{}, false, nil
}

// stream sends one stream. f is what the target had against it.
func (g *giving) stream(ctx context.Context, b begin, token string, step *agentv1.ReplicationStep) (f *failed, err error) {
	spec := zfs.SendSpec{To: g.keep.snapshot(step.GetTo()), Raw: g.spec.GetRaw(), Compressed: true, LargeBlocks: true, Embedded: true}
	if step.GetFrom() != "" {
		spec.From = g.right.GetSourceDataset() + step.GetFrom()
	}
	if b.Resumed {
		spec = zfs.SendSpec{Token: token}
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	begun, before := time.Now(), g.progress.sent()
	source, err := g.r.zfs.Send(ctx, spec)
	if err != nil {
		return nil, sendError(err)
	}
	closed := sync.OnceValue(source.Close)
	defer func() {
		stop()
		_ = closed()
	}()
	if err := g.l.send(frameBegin, b); err != nil {
		return nil, err
	}
	last, n, f, err := g.parts(ctx, source)
	switch {
	case err != nil:
		return nil, err
	case f != nil:
		return f, g.l.send(frameStop, nil)
	}
	if err := closed(); err != nil {
		return nil, sendError(err)
	}
	g.r.pass(pointSendLast)
	if err := g.sender.run.Mark(ctx, markSent(b.Step)); err != nil {
		return nil, err
	}
	g.known = false
	if err := g.part(ctx, last, n); err != nil {
		return nil, err
	}
	if err := g.l.send(frameEnd, nil); err != nil {
		return nil, err
	}
	g.r.pass(pointSendStreamed)
	g.progress.phase("the target writes")
	f, err = g.verdict(ctx)
	if f == nil && err == nil {
		// From zfs's start to the target's having the snapshot.
		g.log.Info("the target has taken a stream", "snapshot", step.GetTo(), "bytes", g.progress.sent()-before, "ms", time.Since(begun).Milliseconds())
	}
	return f, err
}

// verdict waits until the target has taken the stream, or not.
func (g *giving) verdict(ctx context.Context) (*failed, error) {
	got, err := g.heard.next(ctx, frameFailed, frameState)
	if err != nil {
		return nil, err
	}
	if got.kind == frameState {
		g.heard.unread(got)
		return nil, nil
	}
	f, err := parse[failed](got.content)
	return &f, err
}

// sendError is zfs's where this side cannot send.
func sendError(err error) error {
	if passing(err) && codeOf(err) != zfs.CodeStreamBroken {
		return err
	}
	return definite{err}
}

// parts sends all of a stream but its last part, which is given back: without it
// the target has nothing whole.
func (g *giving) parts(ctx context.Context, source io.Reader) (last []byte, n int, f *failed, err error) {
	least := headerSize // in one frame
	for i := 0; ; i++ {
		buf := g.bufs[i%2]
		most := min(g.pace.Piece(frameSize), g.r.leaving.Piece(frameSize))
		read, err := io.ReadAtLeast(source, buf[headSize:headSize+most], min(least, most))
		if errors.Is(err, io.EOF) {
			return last, n, nil, nil
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, 0, nil, sendError(err)
		}
		if last != nil {
			if err := g.part(ctx, last, n); err != nil {
				return nil, 0, nil, err
			}
			g.r.pass(pointSendStream)
		}
		last, n, least = buf, read, max(most/2, 1) // each frame costs system calls on both sides
		select {
		case got, ok := <-g.heard.frames:
			f, err := g.objection(got, ok)
			return nil, 0, f, err
		default:
		}
	}
}

// objection is what the target says while it is sent to.
func (g *giving) objection(got frame, ok bool) (*failed, error) {
	switch {
	case !ok:
		return nil, g.heard.err
	case got.kind == frameGiveUp:
		return nil, forsaken(got)
	case got.kind != frameFailed:
		return nil, fmt.Errorf("a frame %q of the target's in the middle of a stream", got.kind)
	}
	f, err := parse[failed](got.content)
	return &f, err
}

// part sends n bytes of a stream at the pace that is allowed.
func (g *giving) part(ctx context.Context, buf []byte, n int) error {
	if n == 0 {
		return nil
	}
	if err := g.pace.Wait(ctx, n); err != nil {
		return err
	}
	if err := g.r.leaving.Wait(ctx, n); err != nil {
		return err
	}
	if err := g.l.sendData(buf, n); err != nil {
		return err
	}
	g.progress.add(n)
	return nil
}

// conclude moves the cursor on, on both sides.
func (g *giving) conclude(ctx context.Context) error {
	g.progress.phase("moving holds and bookmark on")
	if !g.whole {
		if err := g.l.send(frameHold, nil); err != nil {
			return err
		}
		if _, err := g.heard.next(ctx, frameHeld); err != nil {
			return err
		}
		if err := g.settle(ctx); err != nil {
			return err
		}
	}
	if err := g.l.send(frameRelease, nil); err != nil {
		return err
	}
	if _, err := g.heard.next(ctx, frameDone); err != nil {
		return err
	}
	_ = g.l.send(frameBye, nil)
	g.r.pass(pointSendDone)
	return nil
}
