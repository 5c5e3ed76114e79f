package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// resign measures how long nobody leads when the leader is asked to stop.
func (b *bench) resign(ctx context.Context) error {
	var took []float64
	for range b.rounds {
		seconds, err := b.stopLeader(ctx)
		if err != nil {
			return err
		}
		took = append(took, seconds)
	}
	b.add(Figure{
		Name: "leader_resign_s", Value: median(took), Goal: 1, Better: "lower", Unit: "s",
		Detail: fmt.Sprintf("SIGTERM to the leader → another replica names itself or a third as the leader; median of %d", len(took)),
	})
	return nil
}

// stopLeader stops the leader and starts it again.
func (b *bench) stopLeader(ctx context.Context) (seconds float64, err error) {
	leader, _, conn, err := b.follower(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	view := debvisorv1.NewClusterServiceClient(conn)
	asked := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- leader.Process.Terminate(ctx) }()
	err = lab.Eventually(ctx, "another leads", func() error {
		cluster, err := view.GetCluster(ctx, &debvisorv1.Empty{})
		if err == nil && (cluster.GetLeader() == "" || cluster.GetLeader() == leader.Name) {
			err = fmt.Errorf("%q leads", cluster.GetLeader())
		}
		return err
	})
	seconds = time.Since(asked).Seconds()
	if err = errors.Join(err, <-ended); err != nil {
		return 0, err
	}
	return seconds, errors.Join(leader.Start(), leader.Serving(ctx))
}
