package store

import (
	"context"
	"time"
)

// raftLeaderEvery is how often StayRaftFollower looks.
const raftLeaderEvery = 5 * time.Second

// StayRaftFollower hands the leadership of etcd's own consensus to another
// member whenever this member has it, until ctx ends. A replica that leads runs
// it: were it the leader of etcd as well, its death would cost an election of
// etcd, and leases would count anew from the end of that, before another
// replica could follow. With fewer than three voting members the death of
// either stops etcd anyway, and nothing is done.
func (e *Embedded) StayRaftFollower(ctx context.Context) error {
	ticker := time.NewTicker(raftLeaderEvery)
	defer ticker.Stop()
	for {
		e.yieldRaft()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Yield hands the leadership of etcd's own consensus to another member, if this
// one has it: for a member that is about to stop. It may take seconds where no
// other member answers.
func (e *Embedded) Yield() {
	server := e.etcd.Server
	if server.Leader() != server.MemberID() {
		return
	}
	if err := server.TryTransferLeadershipOnShutdown(); err != nil {
		e.log.Warn("etcd's leadership could not be handed over", "error", err)
	}
}

// yieldRaft hands leadership over, if this member has it, to the member that
// has been connected longest; never to one that is away, which would stop all
// writes for the time of an election.
func (e *Embedded) yieldRaft() {
	server := e.etcd.Server
	voters := 0
	for _, m := range server.Cluster().Members() {
		if !m.IsLearner {
			voters++
		}
	}
	if server.Leader() != server.MemberID() || voters < 3 {
		return
	}
	if err := server.TryTransferLeadershipOnShutdown(); err != nil {
		e.log.Debug("etcd's leadership stays here", "error", err)
	}
}
