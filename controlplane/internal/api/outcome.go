package api

import (
	"fmt"
	"maps"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/failover"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/repldiff"
	"github.com/debvisor/debvisor/controlplane/internal/repldiff/look"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// refusal is a plan that is not allowed, as an error with all its reasons.
func refusal(result *planner.Result) error {
	e := errdefs.New(errdefs.FailedPrecondition, "MIGRATION_NOT_ALLOWED", "%s", result.Refusal()).
		With("vm", result.VM).With("source", result.Source)
	if result.Target != "" {
		e = e.With("target", result.Target)
	}
	return e.With("reasons", strings.Join(result.Codes(), ","))
}

// migrationResult is the end of a migration: its result, or its error.
func migrationResult(op *storev1.Operation) (*debvisorv1.MigrationResult, error) {
	move := op.GetMigrate()
	if op.GetState() != task.OpSucceeded {
		return nil, failure(op)
	}
	took := op.GetEndedAt().AsTime().Sub(op.GetCreatedAt().AsTime())
	result := &debvisorv1.MigrationResult{
		Status: debvisorv1.StatusCode_STATUS_OK, OperationId: op.GetId(),
		Message:    fmt.Sprintf("VM %s runs on %s; it stood still for %d ms", move.GetVmName(), move.GetTarget(), move.GetDowntimeMs()),
		Method:     debvisorv1.MoveMethod(move.GetMethod()),
		Source:     nodeRef(move.GetSource()),
		Target:     nodeRef(move.GetTarget()),
		DowntimeMs: move.GetDowntimeMs(),
		DurationMs: uint64(max(took.Milliseconds(), 0)),
	}
	if len(move.GetEstimate()) > 0 {
		result.Estimate = decode(move.GetEstimate(), &debvisorv1.MoveEstimate{})
	}
	if !move.GetWasRunning() && result.GetMethod() == debvisorv1.MoveMethod_MOVE_METHOD_OFFLINE {
		result.Message = fmt.Sprintf("VM %s is on %s, shut off as it was", move.GetVmName(), move.GetTarget())
	}
	return result, nil
}

// failure is an operation that has ended otherwise than well, as an error of the
// kind that its code stands for.
func failure(op *storev1.Operation) error {
	if op.GetState() == task.OpCancelled {
		return errdefs.New(errdefs.Aborted, "OPERATION_CANCELLED", "operation %s was cancelled; nothing has changed", op.GetId()).
			With("operation", op.GetId())
	}
	e := errdefs.New(failureKind(op.GetErrorCode()), op.GetErrorCode(), "%s", op.GetErrorMessage())
	e.Context = maps.Clone(op.GetErrorContext())
	return e.With("operation", op.GetId())
}

// failureKind tells what a caller can do about a failed operation: Aborted,
// what may pass when it is tried again, unless the code says that something
// has to change first.
func failureKind(code string) errdefs.Kind {
	switch code {
	case "INTERNAL", "BROKEN_RECORD":
		return errdefs.Internal
	case failover.NodeReachable, failover.DefinitionUnknown, failover.BoundToHost, failover.NotProtected, failover.NoProof, failover.DataTooOld,
		failover.DataLossNotAccepted, failover.ReplicationRunning, failover.CephUnreachable, failover.ReplicaNotThere, failover.NoExclusiveLock,
		failover.ImageShared, "NO_TARGET", "NODE_LOST", "REPLICA_CHANGED":
		return errdefs.FailedPrecondition
	case "PLAN_REFUSED", "SOURCE_NOT_GONE", "EVACUATION_BLOCKED", "RESTORE_BLOCKED", "PLAN_STOPPED", "NODE_UNCORDONED",
		"VM_CONFLICT", "VM_NOT_PERSISTENT", "VM_PAUSED", "VM_MIGRATING", "VM_ELSEWHERE", "PLACEMENT_CHANGED", "STALE_PLACEMENT",
		repldiff.SourceReplaced, repldiff.NoSnapshot, repldiff.SameDataset, repldiff.TargetUnrelated, repldiff.Diverged, repldiff.PlanChanged,
		repldiff.EncryptedUnsafe, repldiff.NameClash, repldiff.NoSpace, look.TargetPoolNotFound,
		"DATASET_EXISTS", "DATASET_CHANGED", "DATASET_HAS_CHILDREN", "SNAPSHOT_EXISTS", "SNAPSHOT_HELD", "SNAPSHOT_HAS_CLONES", "NO_SPACE", "QUOTA",
		"NOT_CLONABLE", "FOREIGN_IMAGE", "SNAPSHOT_IN_GROUP", "SNAPSHOT_REPLACED", "OTHER_CEPH_CLUSTER", "CEPH_ERROR",
		"IMAGE_REPLACED", "IMAGE_IN_GROUP", "IMAGE_HAS_SNAPSHOTS", "IMAGE_HAS_CLONES", "IMAGE_IN_USE", "SNAPSHOT_CLONED", "SNAPSHOT_PROTECTED",
		"CLONE_TOO_DEEP", "NOT_OURS", "NO_CEPH", "NO_PERMISSION", "NO_GUEST_AGENT", "FREEZE_FAILED", "FREEZE_EXPIRED", "SNAPSHOT_NEEDED", "READ_ONLY", "FEATURE_MISSING",
		"POOL_SUSPENDED", "KEY_NOT_LOADED", "NOT_PERMITTED", "ZFS_UNSUPPORTED", "DESTINATION_MODIFIED":
		return errdefs.FailedPrecondition
	case "IMAGE_EXISTS":
		return errdefs.AlreadyExists
	case "VM_NOT_FOUND", "NODE_NOT_FOUND", "DATASET_NOT_FOUND", "IMAGE_NOT_FOUND", "SNAPSHOT_NOT_FOUND", "POOL_NOT_FOUND", "JOB_NOT_FOUND", repldiff.SourceNotFound:
		return errdefs.NotFound
	}
	return errdefs.Aborted
}
