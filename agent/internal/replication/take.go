package replication

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// byeWithin is how long the source may take to say that it knows of the end.
	byeWithin = 10 * time.Second
	// partWithin is how long it may take to hear that it is over.
	partWithin = time.Second
)

// session serves one connection of the source. nil: all is done. Where the run has
// failed for good the source is told why.
func (c *receiver) session(ctx context.Context, conn net.Conn) error {
	ctx, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	l := newLink(conn)
	group.Go(func() { l.keepAlive(ctx) })
	err := c.serve(ctx, l)
	if final(err) && !errors.As(err, new(givenUp)) {
		c.part(l, failedOf(err))
	}
	return err
}

// part tells the source that it is over, and gives it a moment to hear.
func (c *receiver) part(l *link, why failed) {
	if l.send(frameGiveUp, why) != nil {
		return
	}
	late := time.AfterFunc(partWithin, func() { _ = l.conn.Close() })
	defer late.Stop()
	for {
		if _, err := l.conn.Read(c.buf); err != nil {
			return
		}
	}
}

// givenUp is why the source has given the run up.
type givenUp struct{ error }

func (g givenUp) Unwrap() error { return g.error }

func (c *receiver) serve(ctx context.Context, l *link) error {
	if err := c.greet(l); err != nil {
		return err
	}
	if !c.fresh {
		if err := c.survey(ctx); err != nil {
			return err
		}
	}
	c.fresh = false
	if err := l.send(frameState, c.state()); err != nil {
		return err
	}
	for {
		kind, content, err := l.next(c.buf)
		if err != nil {
			return err
		}
		done := false
		switch kind {
		case frameBegin:
			err = c.step(ctx, l, content)
		case frameHold:
			err = c.hold(ctx, l)
		case frameRelease:
			done, err = true, c.release(ctx, l)
		case frameGiveUp:
			var why failed
			if why, err = parse[failed](content); err == nil {
				err = definite{givenUp{why.err()}}
			}
		default:
			err = fmt.Errorf("a frame %q that does not belong here", kind)
		}
		if err != nil || done {
			return err
		}
	}
}

// greet makes sure that both ends speak of the same right.
func (c *receiver) greet(l *link) error {
	kind, content, err := l.next(c.buf)
	if err != nil {
		return err
	}
	said, err := parse[hello](content)
	if err != nil || kind != frameHello {
		return fmt.Errorf("not a source's greeting: %q: %w", kind, err)
	}
	if want := helloOf(c.right); said != want {
		return fmt.Errorf("the source speaks of %+v; the right is for %+v", said, want)
	}
	return nil
}

// helloOf is the greeting that a right is shown with.
func helloOf(right *agentv1.ReplicationRight) hello {
	term := task.TermOf(right.GetTerm())
	return hello{
		Version: wireVersion, Job: right.GetJobId(), SourceDataset: right.GetSourceDataset(), TargetDataset: right.GetTargetDataset(),
		SourceGUID: right.GetSourceGuid(), Epoch: term.Epoch, Revision: term.Revision,
	}
}

func (c *receiver) state() state {
	s := state{Have: c.have, Token: c.token}
	if c.have > 0 {
		s.GUID = c.steps()[c.have-1].GetToGuid()
	}
	return s
}

// step receives one stream, and tells what is here then.
func (c *receiver) step(ctx context.Context, l *link, content []byte) error {
	b, err := parse[begin](content)
	if err != nil {
		return err
	}
	if b.Step != c.have || b.Step >= len(c.steps()) {
		return refuse(CodeStreamRefused, "the source begins step %d; the next is %d of %d", b.Step+1, c.have+1, len(c.steps()))
	}
	s := c.steps()[b.Step]
	if b.ToGUID != s.GetToGuid() || b.FromGUID != s.GetFromGuid() || b.Resumed && c.token == "" {
		return refuse(CodeStreamRefused, "the source begins a stream from %d to %d, resumed: %t; planned is @%s from %d to %d",
			b.FromGUID, b.ToGUID, b.Resumed, s.GetTo(), s.GetFromGuid(), s.GetToGuid())
	}
	if !b.Resumed && c.token != "" {
		if err := c.r.zfs.AbortReceive(ctx, c.dataset()); err != nil {
			return err
		}
	}
	if err := c.run.Mark(ctx, markTook(b.Step)); err != nil {
		return err
	}
	c.r.pass(pointReceiveBegin)
	t := &taking{c: c, l: l, step: s}
	whole, err := t.run(ctx)
	if err != nil {
		return err
	}
	if whole {
		c.r.pass(pointReceiveWhole)
	}
	if err := c.lookAgain(ctx, whole); err != nil {
		return err
	}
	if whole && c.have != b.Step+1 {
		return refuse(CodeStreamRefused, "the source's stream of @%s made another snapshot than it said", s.GetTo())
	}
	if whole {
		c.r.pass(pointReceiveChecked)
	}
	if t.more {
		return refuse(CodeStreamRefused, "the source's stream of @%s goes on after its end", s.GetTo())
	}
	return l.send(frameState, c.state())
}

// lookAgain finds out what a stream has left. Of one that zfs has taken to its end
// one look is enough, if it is the planned snapshot that is there now.
func (c *receiver) lookAgain(ctx context.Context, whole bool) error {
	if whole {
		s := c.steps()[c.have]
		guid, err := c.r.guidOf(ctx, c.keep.snapshot(s.GetTo()))
		if err != nil && !gone(err) {
			return err
		}
		if err == nil && guid == s.GetToGuid() {
			c.have, c.token = c.have+1, ""
			return nil
		}
	}
	return c.survey(ctx)
}

// hold holds the cursor, and leaves a copy for a VM writable.
func (c *receiver) hold(ctx context.Context, l *link) error {
	if c.have < len(c.steps()) {
		return refuse(CodeStreamRefused, "the source ends after step %d of %d", c.have, len(c.steps()))
	}
	c.r.pass(pointReceiveHold)
	name, err := c.cursorName(ctx)
	if err != nil {
		return err
	}
	if err := c.keep.hold(ctx, name); err != nil {
		return err
	}
	if c.spec.GetWritable() {
		if err := c.r.zfs.Set(ctx, c.dataset(), map[string]string{"readonly": "off"}); err != nil {
			return err
		}
	}
	c.r.pass(pointReceiveHeld)
	return l.send(frameHeld, nil)
}

// cursorName is the name that the cursor has here.
func (c *receiver) cursorName(ctx context.Context) (string, error) {
	if c.have > 0 {
		return c.steps()[c.have-1].GetTo(), nil
	}
	list, err := c.r.snapshots(ctx, c.dataset())
	if err != nil {
		return "", err
	}
	if s := byGUID(list, c.cursorGUID()); s != nil {
		return s.Name, nil
	}
	return "", refuse(CodeTargetChanged, "%s has lost the snapshot that both sides had", c.dataset())
}

// release lets the job's older snapshots go; then all is done.
func (c *receiver) release(ctx context.Context, l *link) error {
	if c.have < len(c.steps()) {
		return refuse(CodeStreamRefused, "the source ends after step %d of %d", c.have, len(c.steps()))
	}
	c.r.pass(pointReceiveReleasing)
	if err := c.keep.release(ctx, c.cursorGUID()); err != nil {
		return err
	}
	if err := c.run.Mark(ctx, markReleased); err != nil {
		return err
	}
	c.r.pass(pointReceiveReleased)
	// What becomes of the connection now is no matter: the source has nothing left
	// to do but to hear of it, and does not wait for ever.
	late := time.AfterFunc(byeWithin, func() { _ = l.conn.Close() })
	defer late.Stop()
	if l.send(frameDone, nil) == nil {
		_, _, _ = l.next(c.buf)
	}
	return nil
}

// taking is one stream being received.
type taking struct {
	c    *receiver
	l    *link
	step *agentv1.ReplicationStep

	zfs     *zfs.Receiver
	checked bool  // the stream's header is the planned one's
	broken  error // zfs has taken no more
	ended   bool  // zfs has ended by itself
	more    bool  // the stream went on then
}

// run takes the stream's parts to its end. whole: zfs has all of it. An error is
// the connection's, or says that the source is not to be trusted. zfs is started
// while the source's is: it does nothing before it has a header.
func (t *taking) run(ctx context.Context) (whole bool, err error) {
	defer t.cut()
	if t.zfs, err = t.c.r.zfs.Receive(ctx, t.c.receiveSpec(t.step)); err != nil {
		if err := t.fail(err); err != nil {
			return false, err
		}
	}
	for {
		kind, content, err := t.l.next(t.c.buf)
		if err != nil {
			return false, err
		}
		switch kind {
		case frameData:
			err = t.data(ctx, content)
		case frameEnd:
			return t.end()
		case frameStop:
			t.cut()
			return false, nil
		default:
			err = fmt.Errorf("a frame %q in a stream", kind)
		}
		if err != nil {
			return false, err
		}
	}
}

// data hands a part to zfs. The first must begin with the planned stream's header.
func (t *taking) data(ctx context.Context, p []byte) error {
	if t.broken != nil || t.ended {
		t.more = t.more || t.ended
		return nil // passed over until the source has heard
	}
	if !t.checked {
		h, err := readHeader(p)
		if err == nil {
			err = h.check(t.c.spec, t.step)
		}
		if err != nil {
			return refuse(CodeStreamRefused, "the source of %s sent %v", t.c.dataset(), err)
		}
		t.checked = true
	}
	if err := t.c.r.arriving.Wait(ctx, len(p)); err != nil {
		return err
	}
	n, err := t.zfs.Write(p)
	t.c.bytes.Add(uint64(n))
	if err == nil {
		t.c.r.pass(pointReceiveStream)
		return nil
	}
	r := t.zfs
	t.zfs = nil
	if why := r.Finish(); why != nil {
		return t.fail(why)
	}
	t.ended, t.more = true, true
	return nil
}

// fail has the source stop: what zfs said is told.
func (t *taking) fail(err error) error {
	t.broken = err
	t.c.log.Warn("zfs does not take the stream", "step", t.step.GetTo(), "error", err)
	return t.l.send(frameFailed, failedOf(err))
}

func (t *taking) end() (whole bool, err error) {
	switch {
	case t.broken != nil:
		return false, nil
	case t.ended:
		return true, nil
	case !t.checked:
		return false, refuse(CodeStreamRefused, "the source sent an empty stream")
	}
	r := t.zfs
	t.zfs = nil
	if err := r.Finish(); err != nil {
		return false, t.fail(err)
	}
	return true, nil
}

// cut ends a stream in the middle: zfs keeps what has arrived.
func (t *taking) cut() {
	if t.zfs == nil {
		return
	}
	err := t.zfs.Finish()
	t.zfs = nil
	t.c.log.Debug("the stream was cut", "step", t.step.GetTo(), "error", err)
}

// receiveSpec is how a step is received: by the planned snapshot's name, whatever
// the stream says.
func (c *receiver) receiveSpec(step *agentv1.ReplicationStep) zfs.ReceiveSpec {
	properties := map[string]string{zfs.PropertyJob: c.right.GetJobId(), "readonly": "on"}
	if c.spec.GetType() != agentv1.ZfsType_ZFS_TYPE_VOLUME {
		properties["canmount"] = "noauto"
	}
	return zfs.ReceiveSpec{
		Dataset: c.dataset(), Snapshot: step.GetTo(), Properties: properties, Resumable: true, Unmounted: true,
	}
}
