package rbd

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Config says which Ceph it is, and as whom.
type Config struct {
	// Conf is Ceph's configuration; empty: /etc/ceph/ceph.conf.
	Conf string
	// User is the entity without its "client."; empty: debvisor.
	User string
	// Command starts the child; its flags are appended. Empty: this binary's
	// subcommand ceph.
	Command []string
	Log     hclog.Logger
}

// Client asks this host's Ceph. It is safe for concurrent use; nothing runs until
// it is asked for something.
type Client struct {
	cfg     Config
	outages *outages
	graves  graves
	// general serves all that is short, long one flatten at a time.
	general, long *lane
	stop          context.CancelFunc

	mu     sync.Mutex
	closed bool
	own    sync.WaitGroup // what it does by itself
}

const (
	// generalCalls is how many calls are in C at once; each holds a thread there.
	generalCalls = 8
	longCalls    = 1
)

// New gives a client; whether there is a Ceph is seen when it is asked.
func New(cfg Config) *Client {
	if cfg.Conf == "" {
		cfg.Conf = "/etc/ceph/ceph.conf"
	}
	if cfg.User == "" {
		cfg.User = "debvisor"
	}
	if len(cfg.Command) == 0 {
		cfg.Command = []string{"/proc/self/exe", "ceph"}
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &Client{cfg: cfg, stop: stop}
	died := func(address string) {
		c.graves.dig(address)
		c.alone(func() { _ = c.bury(ctx) }) // sooner than the next call, or with it
	}
	c.general, c.long = newLane(cfg, "general", generalCalls, died), newLane(cfg, "long", longCalls, died)
	c.outages = newOutages(func(pool string) {
		c.alone(func() { c.watch(ctx, pool) })
	})
	return c
}

// alone does what nobody waits for but Close.
func (c *Client) alone(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.own.Go(f)
	}
}

// Close ends the children. Calls that are under way fail.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.general.close()
	c.long.close()
	c.own.Wait()
	return nil
}

// Present tells whether this host has a Ceph: whether its configuration is there.
func (c *Client) Present() bool { return c.absent() == nil }

func (c *Client) absent() error {
	_, err := os.Stat(c.cfg.Conf)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist):
		return errdefs.New(errdefs.Unimplemented, CodeNoCeph, "this host has no Ceph: %s does not exist", c.cfg.Conf)
	}
	return errdefs.New(errdefs.Unimplemented, CodeNoCeph, "this host's Ceph cannot be used").WithCause(err)
}

// call is one question to a child.
type call struct {
	verb    verb
	payload []byte
	// pools are those that it touches: nil for the cluster as a whole.
	pools []string
	// changes: once it is sent, silence means that it may have been done.
	changes bool
	// limit bounds the whole of it; 0: only its steps are bounded.
	limit time.Duration
	// part takes what comes before the end.
	part func(payload []byte) error
	// mortal: it ends with whoever asked, and its child with it.
	mortal bool
	// urgent goes where others are turned away: it is how the client looks after
	// itself.
	urgent bool
}

// do sends a call and waits for its end, for ctx or for its limit.
func (c *Client) do(ctx context.Context, l *lane, q call) ([]byte, error) {
	if err := c.absent(); err != nil {
		return nil, err
	}
	if q.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, q.limit)
		defer cancel()
	}
	answer, err := c.ask(ctx, l, q)
	if errors.Is(err, errLost) && !q.changes && q.part == nil {
		// Somebody else's call, or somebody's kill, took the child away.
		answer, err = c.ask(ctx, l, q)
	}
	if errors.Is(err, errLost) {
		err = unanswered(q.changes, "the process that spoke to Ceph has ended").WithCause(err)
	}
	return answer, err
}

// ask is one attempt of do.
func (c *Client) ask(ctx context.Context, l *lane, q call) ([]byte, error) {
	if !q.urgent {
		if _, err := c.outages.check(q.pools); err != nil {
			return nil, err
		}
		if err := c.bury(ctx); err != nil {
			return nil, err
		}
	}
	free, err := c.place(ctx, l, q)
	if err != nil {
		return nil, err
	}
	w, err := c.send(ctx, l, q)
	if err != nil {
		free()
		return nil, err
	}
	// The call may outlive whoever asked: its place is free when it has ended.
	go func() {
		<-w.ended
		free()
		if silent(w.err) && !q.urgent {
			c.outages.open(q.pools, w.err)
		}
	}()
	return w.await(ctx, q)
}

// send gives a call to a child that takes it.
func (c *Client) send(ctx context.Context, l *lane, q call) (*waiter, error) {
	for {
		p, err := l.process(ctx)
		if err != nil {
			if silent(err) && ctx.Err() == nil && !q.urgent {
				c.outages.open(nil, err)
			}
			return nil, err
		}
		w, err := p.send(q)
		if !errors.Is(err, errNotSent) {
			return w, err
		}
		<-p.dead
	}
}

// place waits until a call may be sent, and gives what ends that right.
func (c *Client) place(ctx context.Context, l *lane, q call) (free func(), err error) {
	slots := l.slots
	if q.urgent {
		slots = l.urgent
	}
	for {
		var changed <-chan struct{}
		if !q.urgent {
			if changed, err = c.outages.check(q.pools); err != nil {
				return nil, err
			}
		}
		select {
		case slots <- struct{}{}:
			return func() { <-slots }, nil
		case <-changed:
		case <-ctx.Done():
			return nil, unanswered(false, "Ceph could not be asked: too many calls wait for it").WithCause(ctx.Err())
		}
	}
}
