package store

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// MemberState is how the etcd member that a client uses says it is.
type MemberState struct {
	// Size is that of the database's file, InUse what of it is in use, Quota what
	// it may grow to, bytes; Quota 0: the member does not say.
	Size, InUse, Quota int64
	// Term and Index are those of etcd's own consensus.
	Term, Index uint64
	// Alarms is how many there are, HasLeader whether the member knows a leader.
	Alarms    int
	HasLeader bool
}

// Member asks the first of a client's endpoints how it is. It needs no quorum.
func Member(ctx context.Context, client *clientv3.Client) (MemberState, error) {
	endpoints := client.Endpoints()
	if len(endpoints) == 0 {
		return MemberState{}, errors.New("the client of etcd has no endpoints")
	}
	s, err := client.Status(ctx, endpoints[0])
	if err != nil {
		return MemberState{}, fmt.Errorf("asking etcd at %s how it is: %w", endpoints[0], err)
	}
	return MemberState{
		Size: s.DbSize, InUse: s.DbSizeInUse, Quota: s.DbSizeQuota, Term: s.RaftTerm, Index: s.RaftIndex,
		Alarms: len(s.Errors), HasLeader: s.Leader != 0,
	}, nil
}
