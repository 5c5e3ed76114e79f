package members

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/pki"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Removal takes replicas out of the cluster. Any replica can, but not itself.
type Removal struct {
	// Self is this replica's name.
	Self  string
	View  *store.View
	Store *store.Store
	// Hearing tells who is heard.
	Hearing *Hearing
	// Etcd is the embedded cluster's membership; nil with an outside cluster,
	// whose members are not ours to remove.
	Etcd clientv3.Cluster
	Log  hclog.Logger
}

// Remove takes a replica out for good: first its etcd's membership, then its
// records, and with them its certificates count no more. After a failure in
// between it can be repeated. One that is heard is removed only evenIfRunning.
// It refuses (FailedPrecondition) where those that are left would have no
// majority that is heard, or where it is the last, or this one.
func (r *Removal) Remove(ctx context.Context, name string, evenIfRunning bool) error {
	var list []*etcdserverpb.Member
	if r.Etcd != nil {
		got, err := r.Etcd.MemberList(ctx)
		if err != nil {
			return unavailable("ask etcd for its members", err)
		}
		list = got.Members
	}
	s := r.View.Current()
	member, err := r.find(s, list, name)
	if err != nil {
		return err
	}
	if err := r.refuse(s, list, name, member, evenIfRunning); err != nil {
		return err
	}
	if member != nil {
		if _, err := r.Etcd.MemberRemove(ctx, member.ID); err != nil {
			return unavailable("remove the member from etcd", err)
		}
	}
	// gofail: var removalBeforeRecords struct{}
	change := store.Change{Deletes: []string{store.ReplicaKey(name), store.ReplicaStatusKey(name)}}
	for serial, c := range s.Certificates {
		_, revoked := s.Revoked[serial]
		if !revoked && c.Value.GetName() == name && c.Value.GetHolder() == uint32(pki.Replica) && time.Now().Before(c.Value.GetExpiresAt().AsTime()) {
			change.Puts = append(change.Puts, store.PutString(store.RevokedKey(serial), "replica "+name+" was removed"))
		}
	}
	if _, err := r.Store.Commit(ctx, change); err != nil {
		return err
	}
	r.Log.Warn("replica removed", "name", name, "certificates_revoked", len(change.Puts))
	return nil
}

// find gives the replica's etcd member, nil where it has none (any more).
func (r *Removal) find(s *cluster.Snapshot, list []*etcdserverpb.Member, name string) (*etcdserverpb.Member, error) {
	if i := slices.IndexFunc(list, func(m *etcdserverpb.Member) bool { return m.Name == name }); i >= 0 {
		return list[i], nil
	}
	if status, ok := s.ReplicaStatuses[name]; ok {
		id := status.Value.GetEtcdMember()
		if i := slices.IndexFunc(list, func(m *etcdserverpb.Member) bool { return fmt.Sprintf("%x", m.ID) == id }); i >= 0 {
			return list[i], nil
		}
	}
	if _, ok := s.Replicas[name]; ok {
		return nil, nil
	}
	// One that was let in and never started has no name yet: its peer URL names it.
	if i := slices.IndexFunc(list, func(m *etcdserverpb.Member) bool { return m.Name == "" && slices.Contains(m.PeerURLs, name) }); i >= 0 {
		return list[i], nil
	}
	return nil, errdefs.New(errdefs.NotFound, "REPLICA_NOT_FOUND", "there is no replica %q", name).With("replica", name)
}

// refuse tells why the replica cannot be removed now.
func (r *Removal) refuse(s *cluster.Snapshot, list []*etcdserverpb.Member, name string, member *etcdserverpb.Member, evenIfRunning bool) error {
	no := func(code, format string, args ...any) error {
		return errdefs.New(errdefs.FailedPrecondition, code, format, args...).With("replica", name)
	}
	_, known := s.Replicas[name]
	switch {
	case name == r.Self:
		return no("ASKED_ITSELF", "replica %s is the one that was asked: ask another one to remove it", name)
	case known && len(s.Replicas) <= 1: // others were let in at most, and stand in the way of those who are to come
		return no("LAST_REPLICA", "replica %s is the last one", name)
	case r.Hearing.Heard(name) && !evenIfRunning:
		return no("REPLICA_IS_HEARD", "replica %s is heard: stop it first, or ask for its removal even if it runs", name)
	case member == nil || member.IsLearner:
		return nil
	}
	voters, heard := 0, 0
	var silent []string
	for _, m := range list {
		if m.ID == member.ID || m.IsLearner {
			continue
		}
		voters++
		if m.Name == r.Self || r.Hearing.Heard(m.Name) {
			heard++
		} else {
			silent = append(silent, m.Name)
		}
	}
	if heard < voters/2+1 {
		return no("NO_MAJORITY", "without %s, %d of %d voting replicas would be heard, and that is no majority: bring back %s first",
			name, heard, voters, strings.Join(silent, ", "))
	}
	return nil
}
