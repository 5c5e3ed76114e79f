package rbd

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Main is the child process: requests on standard input, answers on standard
// output, until the agent ends, which closes the former. args are what the client
// gave it after its subcommand's name.
func Main(args []string) error { return run(args, os.Stdin, os.Stdout, func(string) {}) }

func run(args []string, in io.Reader, out io.Writer, passing func(point string)) error {
	flags := flag.NewFlagSet("ceph", flag.ContinueOnError)
	conf := flags.String("conf", "", "Ceph's configuration")
	user := flags.String("user", "", "the entity without its client.")
	_ = flags.String("lane", "", "what it is for: to be seen in the process list")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("ceph: %w", err)
	}
	s := &server{out: out, passing: passing, running: map[uint64]context.CancelFunc{}}
	gone := make(chan error, 1)
	requests := make(chan frame)
	go func() { gone <- reading(in, requests) }()
	connected := make(chan error, 1)
	go func() {
		err := s.connect(*conf, *user)
		if err != nil {
			s.write(frame{verb: verbFailed, payload: failed(err)})
		}
		connected <- err
	}()
	for {
		select {
		case err := <-connected:
			if err != nil {
				return err
			}
		case f := <-requests:
			s.begin(f)
		case err := <-gone:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// reading takes requests in until there are no more: the agent has ended.
func reading(in io.Reader, requests chan<- frame) error {
	for {
		f, err := readFrame(in)
		if err != nil {
			return err
		}
		requests <- f
	}
}

// server is the child's side of what is asked.
type server struct {
	passing func(point string)
	cluster *cluster

	writing sync.Mutex
	out     io.Writer

	mu      sync.Mutex
	running map[uint64]context.CancelFunc
}

// connect says hello once the cluster is connected.
func (s *server) connect(conf, user string) error {
	cluster, first, err := connect(conf, user)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.cluster = cluster
	s.mu.Unlock()
	payload, err := json.Marshal(first)
	if err != nil {
		return err
	}
	s.write(frame{verb: verbHello, payload: payload})
	return nil
}

// write ends the process where nobody reads: the agent has gone.
func (s *server) write(f frame) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := writeFrame(s.out, f); err != nil {
		os.Exit(1)
	}
}

func (s *server) begin(f frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.verb == verbCancel {
		if cancel := s.running[f.id]; cancel != nil {
			cancel()
		}
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.running[f.id] = cancel
	cluster := s.cluster
	go func() {
		defer cancel()
		s.answer(ctx, cluster, &request{server: s, id: f.id, verb: f.verb, payload: f.payload})
		s.mu.Lock()
		delete(s.running, f.id)
		s.mu.Unlock()
	}()
}

// answer does what was asked and says what came of it.
func (s *server) answer(ctx context.Context, c *cluster, r *request) {
	said, err := c.serve(ctx, r)
	var payload []byte
	if err == nil {
		payload, err = proto.Marshal(said)
	}
	if err == nil {
		s.write(frame{id: r.id, verb: verbDone, payload: payload})
		return
	}
	s.write(frame{id: r.id, verb: verbFailed, payload: failed(err)})
	if errors.Is(err, errBlocklisted) {
		os.Exit(1) // this instance is dead to Ceph; the next one is another
	}
}

// errBlocklisted: Ceph takes nothing more from this process.
var errBlocklisted = errors.New("this client is on Ceph's blocklist")

// request is one question at the child.
type request struct {
	server  *server
	id      uint64
	verb    verb
	payload []byte
	// told is when the agent was last told of a step, in Unix milliseconds, and
	// allowed how long that may take.
	told, allowed atomic.Int64
}

const (
	// tellEvery bounds how often the agent is told of steps.
	tellEvery = 250 * time.Millisecond
	// stepWithin is longer than any call takes in C whose time-outs work.
	stepWithin = 15 * time.Second
	// deleteWithin is for the deletion of an image's objects, which tells nothing
	// of how far it is.
	deleteWithin = removeWithin
)

// step says what is done next, which may block. It fails where whoever asked has
// gone, so that nothing is begun for nobody.
func (r *request) step(ctx context.Context, format string, args ...any) error {
	return r.slowStep(ctx, stepWithin, format, args...)
}

func (r *request) slowStep(ctx context.Context, allowed time.Duration, format string, args ...any) error {
	if err := ctx.Err(); err != nil {
		return errdefs.New(errdefs.Cancelled, "CANCELLED", "whoever asked has gone").WithCause(err)
	}
	// Telling the agent of each step would cost more than many of them take.
	now := time.Now().UnixMilli()
	if last := r.told.Load(); allowed == stepWithin && r.allowed.Load() == int64(allowed) && now-last < tellEvery.Milliseconds() {
		return nil
	}
	r.told.Store(now)
	r.allowed.Store(int64(allowed))
	payload := binary.BigEndian.AppendUint32(nil, uint32((allowed+tellEvery)/time.Millisecond))
	r.server.write(frame{id: r.id, verb: verbStep, payload: fmt.Appendf(payload, format, args...)})
	return nil
}

// part says something before the end.
func (r *request) part(m proto.Message) error {
	payload, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	r.server.write(frame{id: r.id, verb: verbPart, payload: payload})
	return nil
}

// pass is called where the process may die between two promises.
func (r *request) pass(point string) {
	r.server.passing(point)
	failpoint(point)
}

// failed is an error as it goes up.
func failed(err error) []byte {
	payload, marshalErr := proto.Marshal(status.Convert(errdefs.ToStatus(err, "")).Proto())
	if marshalErr != nil {
		return nil
	}
	return payload
}

// failure is what failed made.
func failure(payload []byte) error {
	st := &spb.Status{}
	if err := proto.Unmarshal(payload, st); err != nil || st.GetCode() == 0 {
		return errdefs.New(errdefs.Internal, CodeCeph, "Ceph's answer cannot be read").WithCause(err)
	}
	return errdefs.FromStatus(status.ErrorProto(st))
}
