package answer

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The errors of questions about ZFS that never got to it.
const (
	// CodeNoZFS: this host has no ZFS.
	CodeNoZFS = "NO_ZFS"
	// CodeZFSSilent: ZFS has not answered in time, or hangs with former questions.
	CodeZFSSilent = "ZFS_SILENT"
)

const (
	// zfsAtOnce is how many questions are put to ZFS at a time. One that hangs
	// keeps its place, so that a suspended pool does not fill the host with
	// processes that nothing ends.
	zfsAtOnce = 4
	// zfsGrace is how long a command whose question has ended may take to end.
	zfsGrace = 2 * time.Second
)

// Commands are what answers are made of (zfs.ZFS).
type Commands interface {
	Installed() bool
	Datasets(ctx context.Context, roots ...string) ([]zfs.Dataset, error)
	Named(ctx context.Context, names ...string) ([]zfs.Dataset, error)
	Brief(ctx context.Context, roots []string, recursive bool, snapshot func(zfs.Snapshot) error, bookmark func(zfs.Bookmark) error) error
	Snapshots(ctx context.Context, roots []string, recursive bool, yield func(zfs.Snapshot) error) error
	Bookmarks(ctx context.Context, roots []string, recursive bool, yield func(zfs.Bookmark) error) error
	Holds(ctx context.Context, snapshots ...string) (map[string][]zfs.Hold, error)
	EstimateSend(ctx context.Context, spec zfs.SendSpec) (uint64, error)
	DecodeToken(ctx context.Context, token string) (zfs.Token, error)
	EstimateDestroy(ctx context.Context, dataset string, names []string) (uint64, error)
}

// ZFS answers questions about the host's ZFS. It is safe for concurrent use.
type ZFS struct {
	commands Commands
	turns    chan struct{}
	// partBytes is how much a part of a listing holds.
	partBytes int
}

// NewZFS makes one that asks the commands.
func NewZFS(commands Commands) *ZFS {
	return &ZFS{commands: commands, turns: make(chan struct{}, zfsAtOnce), partBytes: partBytes}
}

// answer has a question answered, and is back soon after ctx has ended even if
// ZFS hangs and nothing can end the command.
func (z *ZFS) answer(ctx context.Context, q *agentv1.Ask, part func(*agentv1.Answer) error) (*agentv1.Answer, error) {
	if z == nil || !z.commands.Installed() {
		return nil, errdefs.New(errdefs.FailedPrecondition, CodeNoZFS, "this host has no ZFS")
	}
	select {
	case z.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, silent(ctx)
	}
	type result struct {
		last *agentv1.Answer
		err  error
	}
	done := make(chan result, 1)
	go func() { // may outlive its question, with its turn
		defer func() { <-z.turns }()
		last, err := z.search(ctx, q, part)
		done <- result{last, err}
	}()
	select {
	case r := <-done:
		return r.last, r.err
	case <-ctx.Done():
	}
	late := time.NewTimer(zfsGrace)
	defer late.Stop()
	select {
	case r := <-done:
		if r.err == nil {
			return r.last, nil
		}
	case <-late.C:
	}
	return nil, silent(ctx)
}

func silent(ctx context.Context) error {
	return errdefs.New(errdefs.Unavailable, CodeZFSSilent, "ZFS has not answered before the question ended").WithCause(ctx.Err())
}

// search asks the commands.
func (z *ZFS) search(ctx context.Context, q *agentv1.Ask, part func(*agentv1.Answer) error) (*agentv1.Answer, error) {
	switch k := q.GetQuestion().(type) {
	case *agentv1.Ask_ListZfs:
		return z.list(ctx, k.ListZfs, part)
	case *agentv1.Ask_EstimateZfsSend:
		e, err := z.estimateSend(ctx, k.EstimateZfsSend)
		if err != nil {
			return nil, err
		}
		return &agentv1.Answer{Answer: &agentv1.Answer_ZfsSendEstimate{ZfsSendEstimate: e}}, nil
	default:
		e := q.GetEstimateZfsDestroy()
		bytes, err := z.commands.EstimateDestroy(ctx, e.GetDataset(), e.GetSnapshots())
		if err != nil {
			return nil, err
		}
		return &agentv1.Answer{Answer: &agentv1.Answer_ZfsDestroyEstimate{ZfsDestroyEstimate: &agentv1.ZfsDestroyEstimate{Bytes: bytes}}}, nil
	}
}

// estimateSend tells how much a stream would carry, or what a token names and,
// where this host could send that, how much is left of it.
func (z *ZFS) estimateSend(ctx context.Context, q *agentv1.EstimateZfsSend) (*agentv1.ZfsSendEstimate, error) {
	if q.GetToken() == "" {
		spec := zfs.SendSpec{To: q.GetDataset() + q.GetTo(), Raw: q.GetRaw()}
		if q.GetFrom() != "" {
			spec.From = q.GetDataset() + q.GetFrom()
		}
		bytes, err := z.commands.EstimateSend(ctx, spec)
		return &agentv1.ZfsSendEstimate{Bytes: bytes}, err
	}
	token, err := z.commands.DecodeToken(ctx, q.GetToken())
	if err != nil {
		return nil, err
	}
	e := &agentv1.ZfsSendEstimate{To: token.Name, ToGuid: token.ToGUID, FromGuid: token.FromGUID}
	// The host that made the token has nothing of what it names.
	if bytes, err := z.commands.EstimateSend(ctx, zfs.SendSpec{Token: q.GetToken()}); err == nil {
		e.Bytes = bytes
	}
	return e, nil
}
