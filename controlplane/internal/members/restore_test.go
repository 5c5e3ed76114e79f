package members_test

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/backup"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

func recoveryKey(t *testing.T) *ecdh.PrivateKey {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// takeBackup takes a backup of a replica whose etcd runs into a file.
func takeBackup(t *testing.T, m *members.Member, etcd *store.Embedded, key *ecdh.PrivateKey) string {
	t.Helper()
	v := store.NewView(etcd.Client(), hclog.NewNullLogger())
	background(t, v.Run)
	<-v.Ready()
	a := members.Archive{Member: m, Etcd: etcd.Client(), View: v, Store: store.New(etcd.Client()), Log: hclog.NewNullLogger()}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var parts []*debvisorv1.BackupPart
	if err := a.Backup(ctx, key.PublicKey().Bytes(), "operator", func(p *debvisorv1.BackupPart) error {
		parts = append(parts, proto.CloneOf(p))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cluster.backup")
	if _, err := backup.Write(path, func() (*debvisorv1.BackupPart, error) {
		if len(parts) == 0 {
			return nil, io.EOF
		}
		p := parts[0]
		parts = parts[1:]
		return p, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := v.Await(ctx, 1); err != nil || v.Current().LastBackup.Value == nil {
		poll(t, "the backup is noted", func() (bool, error) { return v.Current().LastBackup.Value != nil, nil })
	}
	if a.Backup(ctx, make([]byte, 32), "operator", nil) == nil {
		t.Error("a backup for a key of zeros")
	}
	return path
}

// formerRecords are a cluster's at work: what they say must do no harm in a restored one.
func formerRecords(now time.Time) []store.Put {
	op := func(id string, state task.OpState) *storev1.Operation {
		return &storev1.Operation{Id: id, Kind: "vm.start", State: state, Resources: []string{"vm/" + id}}
	}
	return []store.Put{
		store.PutString(store.EpochKey(), "3"), store.PutString(store.SchemaKey(), "1"),
		store.PutProto(store.NodeKey("n1"), &storev1.Node{Id: "n1", OffConfirmedAt: timestamppb.New(now), OffConfirmedBy: "x", OffBootId: "boot-1"}),
		store.PutProto(store.NodeKey("n2"), &storev1.Node{Id: "n2"}),
		store.PutProto(store.StatusKey("n1"), &storev1.NodeStatus{
			Id: "n1", Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE, BootId: "boot-1", StartedBootId: "boot-1", JournalId: "j1", Domains: []string{"vm-a"},
		}),
		store.PutProto(store.VMKey("vm-a"), &storev1.VM{Uuid: "vm-a", Name: "a", Node: "n1", Generation: 4}),
		store.PutProto(store.OperationKey("pending"), op("pending", task.OpPending)), store.PutString(store.InUseKey("vm/pending"), "pending"),
		store.PutProto(store.OperationKey("running"), op("running", task.OpRunning)), store.PutString(store.InUseKey("vm/running"), "running"),
		store.PutProto(store.TaskKey("running/1/x"), &storev1.Task{Id: "running/1/x", OperationId: "running", Node: "n1", State: task.Recorded(task.Assigned)}),
		store.PutProto(store.OperationKey("ended"), op("ended", task.OpSucceeded)), store.PutString(store.InUseKey("vm/stray"), "nobody"),
		store.PutProto(store.PlanKey("p"), &storev1.Plan{Id: "p"}), store.PutProto(store.JoinTokenKey("t"), &storev1.JoinToken{Id: "t"}),
		store.PutProto(store.LostCopyKey("vm-a", "n2"), &storev1.LostCopy{}), store.PutProto(store.ReplicaKey("r9"), &storev1.Replica{Name: "r9"}),
		store.PutProto(store.ReplicaStatusKey("r9"), &storev1.ReplicaStatus{Name: "r9"}), store.PutString(store.RevokedKey("ab"), "gone"),
		store.PutString(store.ElectionPrefix()+"/1", "a leader"),
	}
}

// aBackup gives a home whose replica was backed up, the file, its key, and etcd's revision before.
func aBackup(t *testing.T) (home members.Home, file string, key *ecdh.PrivateKey, revision int64) {
	t.Helper()
	home, key = newHome(t), recoveryKey(t)
	record, err := members.Init(home, options(t, "r1"))
	if err != nil {
		t.Fatal(err)
	}
	etcd := startEtcd(t, home, record)
	m := openHome(t, home)
	revision, err = store.New(etcd.Client()).Commit(t.Context(), store.Change{Puts: formerRecords(time.Now())})
	if err != nil {
		t.Fatal(err)
	}
	file = takeBackup(t, m, etcd, key)
	etcd.Close()
	return home, file, key, revision
}

func restoreOptions(t *testing.T, file string, key *ecdh.PrivateKey) members.RestoreOptions {
	t.Helper()
	return members.RestoreOptions{Options: options(t, "r5"), From: file, Key: key, Log: hclog.NewNullLogger()}
}

func TestRestore(t *testing.T) {
	former, file, key, revision := aBackup(t)
	home := newHome(t)
	before := time.Now()
	done, err := members.Restore(t.Context(), home, restoreOptions(t, file, key))
	if err != nil {
		t.Fatal(err)
	}
	if done.Epoch < uint64(before.Unix()) || done.Record.Cluster != "testing" {
		t.Errorf("restored %+v", done)
	}
	m := openHome(t, home)
	if !m.Ring().Signing().Certificate().Equal(openHome(t, former).Ring().Signing().Certificate()) {
		t.Error("the restored cluster has another CA")
	}
	etcd := startEtcd(t, home, done.Record)
	if err := store.New(etcd.Client()).Prepare(t.Context()); err != nil {
		t.Error(err)
	}
	v := store.NewView(etcd.Client(), hclog.NewNullLogger())
	background(t, v.Run)
	<-v.Ready()
	harmless(t, v.Current(), done, revision)
	if got, err := etcd.Client().Get(t.Context(), store.ElectionPrefix(), clientv3.WithPrefix()); err != nil || len(got.Kvs) > 0 {
		t.Errorf("the former leader still leads: %v, %v", got, err)
	}
}

// harmless checks the records of a restored cluster.
func harmless(t *testing.T, s *cluster.Snapshot, done members.Restored, revision int64) {
	t.Helper()
	if s.Revision <= revision+1_000_000 || s.Epoch != done.Epoch || !s.Unconfirmed() || !s.Recovering() || s.ConfirmedEpoch() != 0 {
		t.Errorf("revision %d after %d, epoch %d, restore %v", s.Revision, revision, s.Epoch, s.Restore)
	}
	if want := []string{"n1", "n2"}; !slices.Equal(s.Unheard(), want) {
		t.Errorf("it waits for %v, want %v", s.Unheard(), want)
	}
	for what, left := range map[string]int{
		"plans": len(s.Plans), "join tokens": len(s.JoinTokens), "lost copies": len(s.LostCopies), "replicas": len(s.Replicas), "replicas' states": len(s.ReplicaStatuses),
	} {
		if left > 0 {
			t.Errorf("%d %s are left", left, what)
		}
	}
	if n1 := s.Statuses["n1"].Value; n1.GetLiveness() != storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE || n1.GetBootId() != "" || n1.GetStartedBootId() != "" ||
		n1.GetJournalId() != "j1" || !slices.Equal(n1.GetDomains(), []string{"vm-a"}) {
		t.Errorf("n1 is %v", n1)
	}
	if s.ConfirmedOff("n1") || s.Nodes["n1"].Value.GetOffConfirmedAt() != nil {
		t.Error("the word that n1 is off counts still")
	}
	if live := s.Statuses["n2"].Value.GetLiveness(); live != storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE {
		t.Errorf("n2, which was never heard, is %v", live)
	}
	pending, running := s.Operations["pending"].Value, s.Operations["running"].Value
	if pending.GetState() != task.OpFailed || pending.GetErrorCode() != members.CodeRestored || running.GetState() != task.OpRunning || !running.GetRestored() {
		t.Errorf("operations: %v, %v", pending, running)
	}
	if open := s.Tasks["running/1/x"].Value; !open.GetCancelRequested() || open.GetJournalId() == "" || open.GetJournalId() == "j1" {
		t.Errorf("an open task may be done: %v", open)
	}
	if held := s.InUse; len(held) != 1 || held["vm/running"].Value != "running" {
		t.Errorf("in use: %v", held)
	}
	if _, revoked := s.Revoked["ab"]; !revoked || s.VMs["vm-a"].Value.GetGeneration() != 4 {
		t.Error("records are missing")
	}
	if told := strings.Join(done.Changed, "\n"); !strings.Contains(told, "vm-a on n2") || !strings.Contains(told, "pending") || !strings.Contains(told, "n1 was said to be powered off") {
		t.Errorf("told: %s", told)
	}
}

func TestRestoreRefuses(t *testing.T) {
	former, file, key, _ := aBackup(t)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, whole[:len(whole)-4096], 0o600); err != nil {
		t.Fatal(err)
	}
	occupied := newHome(t)
	if err := os.MkdirAll(filepath.Join(occupied.Dir, "etcd", "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	for want, try := range map[string]func() (members.Home, members.RestoreOptions){
		"cut short": func() (members.Home, members.RestoreOptions) { return newHome(t), restoreOptions(t, short, key) },
		"another recovery key": func() (members.Home, members.RestoreOptions) {
			return newHome(t), restoreOptions(t, file, recoveryKey(t))
		},
		"exists":        func() (members.Home, members.RestoreOptions) { return former, restoreOptions(t, file, key) },
		"holds an etcd": func() (members.Home, members.RestoreOptions) { return occupied, restoreOptions(t, file, key) },
		"more than the backup's": func() (members.Home, members.RestoreOptions) {
			o := restoreOptions(t, file, key)
			o.Epoch = 3
			return newHome(t), o
		},
		"neither an address": func() (members.Home, members.RestoreOptions) {
			o := restoreOptions(t, file, key)
			o.Hosts = []string{"a b"}
			return newHome(t), o
		},
	} {
		home, o := try()
		_, err := members.Restore(t.Context(), home, o)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want one line with %q, got %v", want, err)
		}
		if home != former && home != occupied {
			if _, err := os.Stat(home.Dir); err == nil {
				t.Errorf("%s: something was written", want)
			}
		}
	}
	openHome(t, former)
}

// A restore that broke off is begun anew, whatever it has left.
func TestRestoreAgain(t *testing.T) {
	_, file, key, _ := aBackup(t)
	home := newHome(t)
	if _, err := members.Restore(t.Context(), home, restoreOptions(t, file, key)); err != nil {
		t.Fatal(err)
	}
	// As a kill before its end leaves it.
	if err := os.Remove(home.RecordFile()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home.Dir, "restore.unfinished"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := members.Open(home, 0, hclog.NewNullLogger()); err == nil {
		t.Error("an unfinished directory is a replica's")
	}
	done, err := members.Restore(t.Context(), home, restoreOptions(t, file, key))
	if err != nil {
		t.Fatal(err)
	}
	openHome(t, home)
	startEtcd(t, home, done.Record)
}

// The records of a large cluster are more than one transaction holds.
func TestRestoreOfMany(t *testing.T) {
	former, key := newHome(t), recoveryKey(t)
	record, err := members.Init(former, options(t, "r1"))
	if err != nil {
		t.Fatal(err)
	}
	etcd := startEtcd(t, former, record)
	s := store.New(etcd.Client())
	const nodes = 300
	for i := range nodes {
		id := fmt.Sprintf("n%03d", i)
		if _, err := s.Commit(t.Context(), store.Change{Puts: []store.Put{
			store.PutProto(store.NodeKey(id), &storev1.Node{Id: id}),
			store.PutProto(store.StatusKey(id), &storev1.NodeStatus{Id: id, Capabilities: make([]byte, 8<<10)}),
		}}); err != nil {
			t.Fatal(err)
		}
	}
	file := takeBackup(t, openHome(t, former), etcd, key)
	etcd.Close()
	home := newHome(t)
	done, err := members.Restore(t.Context(), home, restoreOptions(t, file, key))
	if err != nil {
		t.Fatal(err)
	}
	v := store.NewView(startEtcd(t, home, done.Record).Client(), hclog.NewNullLogger())
	background(t, v.Run)
	<-v.Ready()
	for id, status := range v.Current().Statuses {
		if status.Value.GetLiveness() != storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE {
			t.Errorf("%s is %v", id, status.Value.GetLiveness())
		}
	}
	if waited := len(v.Current().Unheard()); waited != nodes {
		t.Errorf("%d nodes are waited for, want %d", waited, nodes)
	}
}

func TestNextEpoch(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	if got := members.NextEpoch(0, now); got != 1_800_000_000 {
		t.Errorf("the first: %d", got)
	}
	if a, b := members.NextEpoch(5, now), members.NextEpoch(5, now.Add(time.Second)); a >= b {
		t.Errorf("two restores of one backup have epochs %d and %d", a, b)
	}
	if got := members.NextEpoch(1_900_000_000, now); got != 1_900_000_001 {
		t.Errorf("with a clock that went back: %d", got)
	}
}
