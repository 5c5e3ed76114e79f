package rbd

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// helloWithin bounds a child's start: twice what connecting may take.
	helloWithin = 12 * time.Second
	// firstStep is how long a request may take to come to its first step.
	firstStep = 10 * time.Second
)

// errLost: the child ended before it answered.
var errLost = errors.New("the child process ended")

// errNotSent: it had ended before the request was sent.
var errNotSent = errors.New("the child process had ended")

// hello is what a child tells of itself once it is connected.
type hello struct {
	FSID string `json:"fsid"`
	// Address is its own with the nonce, as Ceph's blocklist has it.
	Address string `json:"address"`
}

// process is one child.
type process struct {
	cmd  *exec.Cmd
	log  hclog.Logger
	died func(address string)

	writing sync.Mutex
	stdin   io.WriteCloser

	ready, dead chan struct{}

	mu      sync.Mutex
	started bool
	doomed  error // why it was, or is to be, killed
	err     error // once dead
	refused error // why it is not connected, in its own words
	hello   hello
	next    uint64
	waiting map[uint64]*waiter
}

// start runs a child; it is of use once ready is closed, and of none once dead is.
func start(cfg Config, name string, died func(address string)) *process {
	args := append(slices.Clone(cfg.Command), "--conf", cfg.Conf, "--user", cfg.User, "--lane", name)
	p := &process{
		//nolint:noctx // it outlives whoever asked first; kill ends it
		cmd: exec.Command(args[0], args[1:]...), log: cfg.Log.With("child", name), died: died,
		ready: make(chan struct{}), dead: make(chan struct{}), waiting: map[uint64]*waiter{},
	}
	// A failpoint's listener is the agent's; the points themselves are the child's too.
	p.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "GOFAIL_HTTP=") })
	p.cmd.Stderr = cfg.Log.StandardWriter(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug})
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.WaitDelay = time.Second
	go p.run()
	return p
}

// run is the child's life.
func (p *process) run() {
	// The kernel sends the death signal when the thread ends that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.live()
	p.mu.Lock()
	if p.doomed != nil {
		err = p.doomed
	}
	p.err = errors.Join(errLost, err)
	waiting, address := p.waiting, p.hello.Address
	p.waiting = nil
	p.mu.Unlock()
	changes := false
	for _, w := range waiting {
		changes = changes || w.changes
	}
	if changes {
		p.died(address) // before anybody hears of it
	}
	close(p.dead)
	for _, w := range waiting {
		w.end(nil, p.err)
	}
	p.log.Debug("the child has ended", "why", err)
}

func (p *process) live() error {
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return err
	}
	answers, theirs, err := os.Pipe()
	if err != nil {
		return errors.Join(err, stdin.Close())
	}
	defer func() { _ = answers.Close() }()
	p.stdin, p.cmd.Stdout = stdin, theirs
	err = p.cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return errors.Join(err, stdin.Close())
	}
	p.mu.Lock()
	p.started = true
	doomed := p.doomed != nil
	p.mu.Unlock()
	if doomed {
		_ = p.cmd.Process.Kill()
	}
	hurry := time.AfterFunc(helloWithin, func() { p.kill(fmt.Errorf("it was not connected within %s", helloWithin)) })
	defer hurry.Stop()
	broken := make(chan error, 1)
	go func() {
		err := p.read(answers, hurry)
		broken <- err
		_ = p.cmd.Process.Kill() // it says nothing more, or nothing that makes sense
	}()
	err = p.cmd.Wait()
	if said := <-broken; !errors.Is(said, io.EOF) {
		err = errors.Join(said, err)
	}
	if err == nil {
		err = errors.New("it went by itself")
	}
	return err
}

// read hands out what the child says, until it says no more.
func (p *process) read(r io.Reader, hurry *time.Timer) error {
	for {
		f, err := readFrame(r)
		if err != nil {
			return err
		}
		if f.id == 0 {
			hurry.Stop()
			if err := p.greet(f); err != nil {
				return err
			}
			continue
		}
		p.mu.Lock()
		w := p.waiting[f.id]
		if w != nil && (f.verb == verbDone || f.verb == verbFailed) {
			delete(p.waiting, f.id)
		}
		p.mu.Unlock()
		if w == nil {
			return fmt.Errorf("the child answers a request %d that nobody made", f.id)
		}
		w.take(f)
	}
}

// greet takes the child's first words: that it is connected, or why it is not.
func (p *process) greet(f frame) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.verb != verbHello {
		p.refused = failure(f.payload)
		return nil // it ends by itself
	}
	if err := json.Unmarshal(f.payload, &p.hello); err != nil {
		return fmt.Errorf("reading a child's first words: %w", err)
	}
	close(p.ready)
	return nil
}

// unconnected is why a dead child was never of use.
func (p *process) unconnected() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused != nil {
		return p.refused
	}
	return unanswered(false, "Ceph could not be connected").WithCause(p.err)
}

func (p *process) over() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

func (p *process) isDoomed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.doomed != nil
}

// kill ends the child. It returns at once; dead tells when.
func (p *process) kill(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.doomed == nil {
		p.doomed = why
	}
	if p.started {
		_ = p.cmd.Process.Kill() // fails where it is dead
	}
}

// killIdle ends the child if nobody waits for it.
func (p *process) killIdle(why error) {
	select {
	case <-p.ready:
	default:
		return // somebody waits for it to connect
	}
	p.mu.Lock()
	idle := len(p.waiting) == 0
	if idle && p.doomed == nil {
		p.doomed = why // nothing is sent to it any more
	}
	p.mu.Unlock()
	if idle {
		p.kill(why)
	}
}

// send gives the child a request.
func (p *process) send(q call) (*waiter, error) {
	w := &waiter{changes: q.changes, ended: make(chan struct{}), news: make(chan struct{}, 1)}
	p.mu.Lock()
	if p.waiting == nil || p.doomed != nil {
		p.mu.Unlock()
		return nil, errNotSent
	}
	p.next++
	id := p.next
	p.waiting[id] = w
	p.mu.Unlock()
	w.stall = time.AfterFunc(firstStep, func() { p.stalled(w) })
	w.abandon = func() { _ = p.write(frame{id: id, verb: verbCancel}) }
	if q.mortal {
		w.abandon = func() { p.kill(errors.New("whoever asked has gone")) }
	}
	if err := p.write(frame{id: id, verb: q.verb, payload: q.payload}); err != nil {
		p.kill(err) // which ends w
	}
	return w, nil
}

func (p *process) write(f frame) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	return writeFrame(p.stdin, f)
}

// stalled ends a child that does not come back from a step.
func (p *process) stalled(w *waiter) {
	w.mu.Lock()
	err := unanswered(w.changes, "Ceph has not answered for %s (%s)", w.allowed, w.step)
	w.mu.Unlock()
	p.log.Warn("a call to Ceph does not come back: its process is killed", "step", w.step)
	w.end(nil, err)
	p.kill(err)
}

// waiter is a request under way.
type waiter struct {
	changes bool
	abandon func()
	stall   *time.Timer
	news    chan struct{}
	ended   chan struct{}

	mu      sync.Mutex
	step    string
	allowed time.Duration
	parts   [][]byte
	over    bool
	answer  []byte
	err     error // once ended
}

func (w *waiter) take(f frame) {
	switch f.verb {
	case verbStep:
		allowed := time.Duration(binary.BigEndian.Uint32(f.payload)) * time.Millisecond
		w.mu.Lock()
		w.step, w.allowed = string(f.payload[4:]), allowed
		if !w.over {
			w.stall.Reset(allowed)
		}
		w.mu.Unlock()
	case verbPart:
		w.mu.Lock()
		w.parts = append(w.parts, f.payload)
		w.mu.Unlock()
		select {
		case w.news <- struct{}{}:
		default:
		}
	case verbDone:
		w.end(f.payload, nil)
	default:
		w.end(nil, failure(f.payload))
	}
}

// end is the first end's only.
func (w *waiter) end(answer []byte, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	w.over, w.answer, w.err = true, answer, err
	w.stall.Stop()
	close(w.ended)
}

// await hands over parts until the end, or until ctx ends: then the request is left
// to itself.
func (w *waiter) await(ctx context.Context, q call) ([]byte, error) {
	for {
		w.mu.Lock()
		parts := w.parts
		w.parts = nil
		over := w.over
		w.mu.Unlock()
		for _, part := range parts {
			if err := q.part(part); err != nil {
				w.abandon()
				return nil, err
			}
		}
		if over {
			return w.answer, w.err
		}
		select {
		case <-w.news:
		case <-w.ended:
		case <-ctx.Done():
			w.abandon()
			return nil, unanswered(q.changes, "Ceph has not answered in time").WithCause(ctx.Err())
		}
	}
}
