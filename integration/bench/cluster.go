package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/integration/lab"
)

// follower is a replica that does not lead, with a connection to it.
func (b *bench) follower(ctx context.Context) (leader, follower *lab.Replica, conn *grpc.ClientConn, err error) {
	if follower, leader, err = b.lab.Follower(ctx); err != nil {
		return nil, nil, nil, fmt.Errorf("looking for a replica that does not lead: %w", err)
	}
	conn, err = b.lab.Dial(follower)
	return leader, follower, conn, err
}
