package members

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// restoreRecords starts the restored etcd, where nobody else reaches it, and
// takes out of the records what was true when the backup was taken and would do
// harm now.
func restoreRecords(ctx context.Context, home Home, r Record, m *debvisorv1.BackupManifest, epoch uint64, log hclog.Logger) (changed []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, restoreWait)
	defer cancel()
	etcd, err := store.StartEmbedded(ctx, store.EmbeddedConfig{
		Name: r.Name, DataDir: home.Dir, PeerListen: "127.0.0.1:0", Peers: r.Peers(), Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("start the restored etcd: %w", err)
	}
	defer etcd.Close()
	if err := dropElection(ctx, etcd.Client()); err != nil {
		return nil, err
	}
	before, err := readAll(ctx, etcd.Client(), log)
	if err != nil {
		return nil, err
	}
	w := rewriting{now: time.Now(), epoch: epoch, manifest: m, before: before}
	w.rewrite()
	s := store.New(etcd.Client())
	for chunk := range slices.Chunk(w.edits, store.MaxChangeOps/2) {
		if err := writeEdits(ctx, s, chunk); err != nil {
			return nil, fmt.Errorf("write the restored records: %w", err)
		}
	}
	return w.told, nil
}

// writeEdits writes records in as many transactions as their bytes call for.
func writeEdits(ctx context.Context, s *store.Store, edits []edit) error {
	var c store.Change
	for _, e := range edits {
		if e.delete != "" {
			c.Deletes = append(c.Deletes, e.delete)
		} else {
			c.Puts = append(c.Puts, e.put)
		}
	}
	_, err := s.Commit(ctx, c)
	if half := len(edits) / 2; half > 0 && store.IsTooLarge(err) {
		if err := writeEdits(ctx, s, edits[:half]); err != nil {
			return err
		}
		return writeEdits(ctx, s, edits[half:])
	}
	return err
}

// dropElection ends whatever lead the backup tells of, and its leases.
func dropElection(ctx context.Context, etcd *clientv3.Client) error {
	leases, err := etcd.Leases(ctx)
	if err != nil {
		return unavailable("ask the restored etcd for its leases", err)
	}
	for _, l := range leases.Leases {
		if _, err := etcd.Revoke(ctx, l.ID); err != nil {
			return unavailable("end a lease of the backup", err)
		}
	}
	if _, err := etcd.Delete(ctx, store.ElectionPrefix()+"/", clientv3.WithPrefix()); err != nil {
		return unavailable("end the election of the backup", err)
	}
	return nil
}

// readAll reads all records once.
func readAll(ctx context.Context, etcd *clientv3.Client, log hclog.Logger) (*cluster.Snapshot, error) {
	ctx, cancel := context.WithCancel(ctx)
	v := store.NewView(etcd, log)
	var running sync.WaitGroup
	running.Go(func() { _ = v.Run(ctx) }) // it ends with ctx, whatever etcd does
	defer running.Wait()
	defer cancel()
	select {
	case <-v.Ready():
		return v.Current(), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("read the restored records: %w", ctx.Err())
	}
}

// edit is one record to write, or to delete.
type edit struct {
	put    store.Put
	delete string
}

// rewriting makes the records of a restored cluster of those of a backup.
type rewriting struct {
	now      time.Time
	epoch    uint64
	manifest *debvisorv1.BackupManifest
	before   *cluster.Snapshot

	edits []edit
	told  []string
}

func (w *rewriting) put(key string, m proto.Message) {
	w.edits = append(w.edits, edit{put: store.PutProto(key, m)})
}

func (w *rewriting) drop(key string) { w.edits = append(w.edits, edit{delete: key}) }

func (w *rewriting) tell(format string, args ...any) {
	w.told = append(w.told, fmt.Sprintf(format, args...))
}

func (w *rewriting) rewrite() {
	w.nodes()
	w.operations()
	w.copies()
	s := w.before
	each(s.Plans, func(id string, _ *storev1.Plan) { w.drop(store.PlanKey(id)) })
	// One that was spent since would be as good as new.
	each(s.JoinTokens, func(id string, _ *storev1.JoinToken) { w.drop(store.JoinTokenKey(id)) })
	if n := len(s.JoinTokens); n > 0 {
		w.tell("%d join tokens count no more: make new ones", n)
	}
	each(s.Replicas, func(name string, _ *storev1.Replica) { w.drop(store.ReplicaKey(name)) })
	each(s.ReplicaStatuses, func(name string, _ *storev1.ReplicaStatus) { w.drop(store.ReplicaStatusKey(name)) })
	each(s.Healths, func(id string, _ *storev1.NodeHealth) { w.drop(store.HealthKey(id)) })
	if ca := s.CA.Value; ca != nil {
		// What is sealed to replicas that are no more opens nowhere; this one has all
		// keys from the backup itself.
		next := proto.CloneOf(ca)
		next.SealedKeys = nil
		w.put(store.CAKey(), next)
	}
	at := w.manifest.GetTakenAt()
	w.put(store.RestoreKey(), &storev1.Restore{
		Epoch: w.epoch, RestoredAt: timestamppb.New(w.now), BackupRevision: w.manifest.GetRevision(),
		BackupAt:    &timestamppb.Timestamp{Seconds: at.GetSeconds(), Nanos: at.GetNanos()},
		Differences: slices.Clone(w.told),
	})
	w.edits = append(w.edits, edit{put: store.PutString(store.EpochKey(), fmt.Sprint(w.epoch))})
}

// nodes makes every node one that nobody has heard: which VMs it has is as it
// last said, whether it was said to be off counts no more, and the boot that it
// is in when it is first heard is none after which anything is started.
func (w *rewriting) nodes() {
	each(w.before.Statuses, func(id string, s *storev1.NodeStatus) {
		next := proto.CloneOf(s)
		next.Liveness = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
		next.BootId, next.StartedBootId = "", ""
		w.put(store.StatusKey(id), next)
	})
	each(w.before.Nodes, func(id string, n *storev1.Node) {
		if _, known := w.before.Statuses[id]; !known { // its agent may have come since
			w.put(store.StatusKey(id), &storev1.NodeStatus{Id: id, Liveness: storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE})
		}
		if n.GetOffConfirmedAt() == nil {
			return
		}
		next := proto.CloneOf(n)
		next.OffConfirmedAt, next.OffConfirmedBy, next.OffReason, next.OffBootId, next.OffLastSeen = nil, "", "", "", nil
		w.put(store.NodeKey(id), next)
		w.tell("node %s was said to be powered off when the backup was taken: say so anew if it is", id)
	})
}

// formerJournal is the journal that tasks of the backup are given: it is no
// agent's, so that they are never done, only observed.
const formerJournal = "restored"

// operations ends what was not begun, and marks what was: it is observed by the
// nodes, and ended then.
func (w *rewriting) operations() {
	each(w.before.Operations, func(id string, op *storev1.Operation) {
		if task.OpEnded(op.GetState()) {
			return
		}
		next := proto.CloneOf(op)
		next.Restored = true
		if len(w.before.TasksOf(id)) > 0 {
			next.Step = "waiting for what its nodes say: the cluster was restored from a backup"
			w.put(store.OperationKey(id), next)
			return
		}
		EndRestored(next, "the cluster was restored from a backup that was taken before it was begun; whether it was carried out since is not known", w.now)
		w.put(store.OperationKey(id), next)
		w.tell("operation %s (%s) had not been begun when the backup was taken, and is ended", id, op.GetKind())
	})
	for id, entry := range w.before.Tasks {
		if task.Ended(task.State(entry.Value.GetState())) {
			continue
		}
		next := proto.CloneOf(entry.Value)
		next.JournalId, next.CancelRequested = formerJournal, true
		w.put(store.TaskKey(id), next)
	}
	for resource, entry := range w.before.InUse {
		op, known := w.before.Operations[entry.Value]
		if !known || task.OpEnded(op.Value.GetState()) || len(w.before.TasksOf(entry.Value)) == 0 {
			w.drop(store.InUseKey(resource))
		}
	}
}

// CodeRestored is the code of operations that were open in a backup that the
// cluster was restored from.
const CodeRestored = "RESTORED"

// EndRestored ends an operation of which the backup does not tell the end.
func EndRestored(op *storev1.Operation, why string, now time.Time) {
	op.State, op.Step, op.EndedAt = task.OpFailed, "", timestamppb.New(now)
	op.ErrorCode, op.ErrorMessage = CodeRestored, why
}

// copies forgets which copies of VMs were to be destroyed: since the backup was
// taken the VM may have come back to that very node.
func (w *rewriting) copies() {
	for _, key := range slices.Sorted(maps.Keys(w.before.LostCopies)) {
		uuid, node, _ := strings.Cut(key, "/")
		w.drop(store.LostCopyKey(uuid, node))
		w.tell("the copy of VM %s on %s was to be destroyed when the backup was taken; that counts no more: look at it", uuid, node)
	}
}

// each calls f for all records, by ascending key.
func each[T any](records map[string]cluster.Entry[T], f func(key string, value T)) {
	for _, key := range slices.Sorted(maps.Keys(records)) {
		f(key, records[key].Value)
	}
}
