package api

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Members takes backups and removes replicas (package members).
type Members interface {
	// Backup sends a backup in parts; by is who takes it.
	Backup(ctx context.Context, recoveryKey []byte, by string, send func(*debvisorv1.BackupPart) error) error
	// Remove takes a replica out for good.
	Remove(ctx context.Context, name string, evenIfRunning bool) error
	// Silence is for how long a replica has said nothing; ever is false for one
	// that never has.
	Silence(name string) (silence time.Duration, ever bool)
}

// errNoMembers is of a replica that was assembled without them.
func errNoMembers() error {
	return errdefs.New(errdefs.FailedPrecondition, "NOT_HERE", "this replica takes no backups and removes no replicas: ask another one")
}

// Backup streams a backup.
func (s *clusterService) Backup(req *debvisorv1.BackupRequest, stream grpc.ServerStreamingServer[debvisorv1.BackupPart]) error {
	if s.members == nil {
		return errNoMembers()
	}
	ctx := stream.Context()
	return s.members.Backup(ctx, req.GetRecoveryKey(), authn.From(ctx).Name, stream.Send)
}

// RemoveReplica takes a replica out of the cluster for good.
func (s *clusterService) RemoveReplica(ctx context.Context, req *debvisorv1.RemoveReplicaRequest) (*debvisorv1.RemoveReplicaResult, error) {
	if s.members == nil {
		return nil, errNoMembers()
	}
	if err := s.members.Remove(ctx, req.GetName(), req.GetEvenIfRunning()); err != nil {
		return nil, err
	}
	return &debvisorv1.RemoveReplicaResult{
		Status: debvisorv1.StatusCode_STATUS_OK, Message: "replica " + req.GetName() + " is removed; its data directory is of no use any more",
	}, nil
}

// ConfirmRestore notes the caller's word that the restored cluster is the one
// that nodes shall listen to. Given twice it is answered again.
func (s *clusterService) ConfirmRestore(ctx context.Context, req *debvisorv1.RestoreConfirmation) (*debvisorv1.RestoreStatus, error) {
	snapshot := s.view.Current()
	was := snapshot.Restore
	switch {
	case was.Value == nil:
		return nil, errdefs.New(errdefs.FailedPrecondition, "NOT_RESTORED", "this cluster was not restored from a backup")
	case was.Value.GetEpoch() != req.GetEpoch() || snapshot.Epoch != req.GetEpoch():
		return nil, errdefs.Field("epoch", fmt.Sprint(req.GetEpoch()), fmt.Sprintf("%d, the epoch that the last restore began", was.Value.GetEpoch()))
	case was.Value.GetConfirmedAt() != nil:
		return restoreStatus(snapshot), nil
	}
	next := proto.CloneOf(was.Value)
	next.ConfirmedAt, next.ConfirmedBy, next.ConfirmedReason = timestamppb.New(time.Now()), authn.From(ctx).Name, req.GetReason()
	revision, err := s.store.Commit(ctx, store.Change{
		Require: []store.Condition{store.Unchanged(store.RestoreKey(), was.ModRevision)},
		Puts:    []store.Put{store.PutProto(store.RestoreKey(), next)},
	})
	if err != nil {
		return nil, err
	}
	if err := s.view.Await(ctx, revision); err != nil {
		return nil, err
	}
	return restoreStatus(s.view.Current()), nil
}
