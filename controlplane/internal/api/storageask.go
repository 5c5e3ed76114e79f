package api

import (
	"context"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// askWithin is how long a node may take to answer one question.
	askWithin = 30 * time.Second
	// maxListed bounds what is listed of a node for one call.
	maxListed = 500_000
	// estimatedAtOnce is how many snapshots one question about space names.
	estimatedAtOnce = 10_000
)

// ask puts a question to a node's agent.
func (s *storageService) ask(ctx context.Context, node string, q *agentv1.Ask, part func(*agentv1.Answer) error) error {
	if s.asker == nil {
		return errdefs.New(errdefs.Unavailable, "NO_SESSION", "the agent of node %s is not heard", node).With("node", node).WithRetry(time.Second)
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	return s.asker.Ask(ctx, node, q, part)
}

// listing asks a node what it has. A dataset that does not exist is left out.
func (s *storageService) listing(ctx context.Context, node string, q *agentv1.ListZfs) (*agentv1.ZfsListing, error) {
	all := &agentv1.ZfsListing{}
	err := s.ask(ctx, node, &agentv1.Ask{Question: &agentv1.Ask_ListZfs{ListZfs: q}}, func(a *agentv1.Answer) error {
		part := a.GetZfsListing()
		all.Datasets = append(all.Datasets, part.GetDatasets()...)
		all.Snapshots = append(all.Snapshots, part.GetSnapshots()...)
		all.Bookmarks = append(all.Bookmarks, part.GetBookmarks()...)
		if len(all.GetDatasets())+len(all.GetSnapshots())+len(all.GetBookmarks()) > maxListed {
			return errdefs.New(errdefs.ResourceExhausted, "TOO_MANY_SNAPSHOTS", "node %s has more than %d of them there; ask about fewer datasets", node, maxListed).
				With("node", node)
		}
		return nil
	})
	return all, err
}

// frees asks how much the end of a dataset's snapshots would free.
func (s *storageService) frees(ctx context.Context, node, path string, names []string) (uint64, error) {
	sum := uint64(0)
	for len(names) > 0 {
		some := names[:min(estimatedAtOnce, len(names))]
		names = names[len(some):]
		q := &agentv1.EstimateZfsDestroy{Dataset: path, Snapshots: some}
		err := s.ask(ctx, node, &agentv1.Ask{Question: &agentv1.Ask_EstimateZfsDestroy{EstimateZfsDestroy: q}}, func(a *agentv1.Answer) error {
			sum += a.GetZfsDestroyEstimate().GetBytes()
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return sum, nil
}
