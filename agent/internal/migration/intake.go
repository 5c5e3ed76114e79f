package migration

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	"github.com/debvisor/debvisor/agent/internal/zvol"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
)

// intake is where the streams of a VM's volumes come in on the target, for as long
// as the task lets them. Of a volume there is one at a time.
type intake struct {
	ctx    context.Context // ends with shut
	cancel context.CancelFunc
	// came is called after each.
	came func()

	mu      sync.Mutex
	closed  bool
	streams sync.WaitGroup
	doors   map[string]*door // by the guest's name of the disk
}

type door struct {
	volume zvol.Volume
	busy   chan struct{}
}

func newIntake(ctx context.Context, volumes []zvol.Volume, came func()) *intake {
	i := &intake{doors: map[string]*door{}, came: came}
	i.ctx, i.cancel = context.WithCancel(ctx)
	for _, v := range volumes {
		i.doors[v.Disk.GetTarget()] = &door{v, make(chan struct{}, 1)}
	}
	return i
}

// enter waits for its turn at a volume; leave must be called.
func (i *intake) enter(ctx context.Context, target string) (v zvol.Volume, leave func(), err error) {
	refused := errdefs.New(errdefs.NotFound, "VOLUME_NOT_EXPECTED", "this agent takes no volume %q (any more)", target)
	if i == nil || i.doors[target] == nil {
		return v, nil, refused
	}
	i.mu.Lock()
	if i.closed {
		i.mu.Unlock()
		return v, nil, refused
	}
	i.streams.Add(1)
	i.mu.Unlock()
	d := i.doors[target]
	select {
	case d.busy <- struct{}{}:
		return d.volume, func() {
			<-d.busy
			i.streams.Done()
			i.came()
		}, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-i.ctx.Done():
		err = refused
	}
	i.streams.Done()
	return v, nil, err
}

// shut lets nothing in any more, and returns when nothing is received.
func (i *intake) shut() {
	if i == nil {
		return
	}
	i.mu.Lock()
	i.closed = true
	i.mu.Unlock()
	i.cancel()
	i.streams.Wait()
}

// admit has a task's cell let streams in; nil: none.
func (c *sideCell) admit(i *intake) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.intake = i
}

func (c *sideCell) admits() *intake {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.intake
}

// door finds the volume that the asker may send to.
func (s peerServer) door(ctx context.Context, taskID, target string) (*intake, zvol.Volume, func(), error) {
	node, err := s.asker(ctx)
	if err != nil {
		return nil, zvol.Volume{}, nil, err
	}
	c := s.m.sides.find(taskID, node)
	if c == nil {
		return nil, zvol.Volume{}, nil, errdefs.New(errdefs.NotFound, "TASK_NOT_FOUND", "this agent knows no such migration of yours")
	}
	in := c.admits()
	v, leave, err := in.enter(ctx, target)
	return in, v, leave, err
}

// LookVolume answers what there is of a volume.
func (s peerServer) LookVolume(ctx context.Context, req *agentv1.LookVolumeRequest) (*agentv1.LookVolumeResponse, error) {
	_, v, leave, err := s.door(ctx, req.GetTaskId(), req.GetTarget())
	if err != nil {
		return nil, err
	}
	defer leave()
	return v.Look(ctx)
}

// TakeVolume receives one stream. What has come of one that is cut stays, to be
// gone on with.
func (s peerServer) TakeVolume(stream grpc.ClientStreamingServer[agentv1.VolumePart, agentv1.LookVolumeResponse]) error {
	head, err := stream.Recv()
	if err != nil {
		return err
	}
	in, v, leave, err := s.door(stream.Context(), head.GetTaskId(), head.GetTarget())
	if err != nil {
		return err
	}
	defer leave()
	to := zfs.Ref{Name: head.GetTo(), GUID: head.GetToGuid()}
	parts := &parts{next: stream.Recv, rest: head.GetData()}
	if err := v.Take(in.ctx, head.GetFromGuid(), to, head.GetResumed(), parts); err != nil {
		obs.Logger(in.ctx, s.m.cfg.Log).Warn("a stream of a volume was not taken", "dataset", v.Disk.GetZfsDataset(), "error", err)
		return err
	}
	has, err := v.Look(in.ctx)
	if err != nil {
		return err
	}
	return stream.SendAndClose(has)
}

// parts reads what is in the parts of a stream.
type parts struct {
	next func() (*agentv1.VolumePart, error)
	rest []byte
}

func (p *parts) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		part, err := p.next()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, errdefs.New(errdefs.Unavailable, "STREAM_BROKEN", "the source's stream broke off").WithCause(err)
		}
		p.rest = part.GetData()
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
