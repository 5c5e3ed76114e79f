package members

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Promoter makes voters of the learners that have caught up. It is for the
// leader; that two should run at once does no harm, since etcd itself decides
// whether a learner is ready.
type Promoter struct {
	Etcd clientv3.Cluster
	// Interval is the time between looks; 0: 2 s.
	Interval time.Duration
	Log      hclog.Logger
}

// Run looks until the context ends; it then returns nil. Failures are logged
// and tried again.
func (p Promoter) Run(ctx context.Context) error {
	interval := p.Interval
	if interval <= 0 {
		interval = 2 * time.Second
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := p.promote(ctx); err != nil && ctx.Err() == nil {
			p.Log.Warn("learners not promoted", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (p Promoter) promote(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	list, err := p.Etcd.MemberList(ctx)
	if err != nil {
		return err
	}
	for _, m := range list.Members {
		if !m.IsLearner || m.Name == "" {
			continue // a voter, or not started yet
		}
		_, err := p.Etcd.MemberPromote(ctx, m.ID)
		switch {
		case err == nil:
			p.Log.Info("replica votes now", "name", m.Name)
		case errors.Is(err, rpctypes.ErrMemberLearnerNotReady), errors.Is(err, rpctypes.ErrMemberNotLearner):
		default:
			return err
		}
	}
	return nil
}
