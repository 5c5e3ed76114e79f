package schedule

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// policy is a named storage policy of either kind.
type policy struct {
	// title names it for people and tells it from all others.
	title, name string
	key         string
	modRevision int64
	// put writes the record with that run.
	put       func(run *storev1.StoragePolicyRun) store.Put
	run       *storev1.StoragePolicyRun // never changed
	changedAt time.Time
	changedBy string

	// What read gives.
	schedule, zone string
	paused         bool
	retention      *debvisorv1.RetentionPolicySpec   // or
	replication    *debvisorv1.ReplicationPolicySpec // this
	read           func() error
}

func retentionPolicy(e cluster.Entry[*storev1.RetentionPolicy]) *policy {
	p := &policy{
		title: "retention policy " + e.Value.GetName(), name: e.Value.GetName(), key: store.RetentionPolicyKey(e.Value.GetName()),
		modRevision: e.ModRevision, run: e.Value.GetRun(), changedAt: moment(e.Value.GetChangedAt()), changedBy: e.Value.GetChangedBy(),
	}
	p.put = func(run *storev1.StoragePolicyRun) store.Put {
		record := proto.CloneOf(e.Value)
		record.Run = run
		return store.PutProto(p.key, record)
	}
	p.read = func() error {
		spec := &debvisorv1.RetentionPolicySpec{}
		if err := proto.Unmarshal(e.Value.GetSpec(), spec); err != nil {
			return fmt.Errorf("reading its record: %w", err)
		}
		p.retention, p.schedule, p.zone, p.paused = spec, spec.GetSchedule(), spec.GetTimeZone(), spec.GetPaused()
		return nil
	}
	return p
}

func replicationPolicy(e cluster.Entry[*storev1.ReplicationPolicy]) *policy {
	p := &policy{
		title: "replication policy " + e.Value.GetName(), name: e.Value.GetName(), key: store.ReplicationPolicyKey(e.Value.GetName()),
		modRevision: e.ModRevision, run: e.Value.GetRun(), changedAt: moment(e.Value.GetChangedAt()), changedBy: e.Value.GetChangedBy(),
	}
	p.put = func(run *storev1.StoragePolicyRun) store.Put {
		record := proto.CloneOf(e.Value)
		record.Run = run
		return store.PutProto(p.key, record)
	}
	p.read = func() error {
		spec := &debvisorv1.ReplicationPolicySpec{}
		if err := proto.Unmarshal(e.Value.GetSpec(), spec); err != nil {
			return fmt.Errorf("reading its record: %w", err)
		}
		p.replication, p.schedule, p.zone, p.paused = spec, spec.GetSchedule(), spec.GetTimeZone(), spec.GetPaused()
		return nil
	}
	return p
}

// lastDue is when it was last due; zero: never.
func (p *policy) lastDue() time.Time { return moment(p.run.GetLastDue()) }

// begun tells that a run of it took several transactions and is not whole yet.
// A policy that was changed since does not go on with it.
func (p *policy) begun() bool { return p.run.GetReached() != "" && !p.changedAt.After(p.lastDue()) }

// moment is a record's time; absent: zero.
func moment(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
