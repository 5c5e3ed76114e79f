package members_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/controlplane/internal/pki"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// TestRemoval removes a dead replica of three, and nothing that would cost the majority.
func TestRemoval(t *testing.T) {
	all := storetest.StartAll(t, storetest.Configs(t, 3))
	client := all[0].Client()
	v, s := store.NewView(client, hclog.NewNullLogger()), store.New(client)
	background(t, v.Run)
	<-v.Ready()
	say := func(name string, age time.Duration) store.Put {
		return store.PutProto(store.ReplicaStatusKey(name), &storev1.ReplicaStatus{Name: name, At: timestamppb.New(time.Now().Add(-age))})
	}
	commit := func(puts ...store.Put) {
		t.Helper()
		revision, err := s.Commit(t.Context(), store.Change{Puts: puts})
		if err == nil {
			err = v.Await(t.Context(), revision)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	commit(
		store.PutProto(store.ReplicaKey("r1"), &storev1.Replica{Name: "r1"}), store.PutProto(store.ReplicaKey("r2"), &storev1.Replica{Name: "r2"}),
		store.PutProto(store.ReplicaKey("r3"), &storev1.Replica{Name: "r3"}), say("r1", 0), say("r2", time.Hour), say("r3", time.Hour),
		store.PutProto(store.CertificateKey("AB"), &storev1.Certificate{Serial: "AB", Name: "r3", Holder: uint32(pki.Replica), ExpiresAt: timestamppb.New(time.Now().Add(time.Hour))}),
		store.PutProto(store.CertificateKey("CD"), &storev1.Certificate{Serial: "CD", Name: "r3", Holder: uint32(pki.Principal), ExpiresAt: timestamppb.New(time.Now().Add(time.Hour))}),
	)
	var later atomic.Int64 // by which this replica's own clock has gone on
	hearing := &members.Hearing{View: v, Now: func() time.Time { return time.Now().Add(time.Duration(later.Load())) }}
	r := members.Removal{Self: "r1", View: v, Store: s, Etcd: client, Hearing: hearing, Log: hclog.NewNullLogger()}
	refused := func(name string, even bool, want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := r.Remove(ctx, name, even); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("removing %s: %v, want %q", name, err, want)
		}
	}
	refused("r9", false, `no replica "r9"`)
	refused("r1", true, "is the one that was asked")
	refused("r3", false, "1 of 2 voting replicas would be heard")
	commit(say("r2", 0), say("r3", 0))
	refused("r3", false, "is heard")
	all[2].Close()
	later.Store(int64(time.Minute))
	commit(say("r1", 0), say("r2", 0))
	if err := r.Remove(t.Context(), "r3", false); err != nil {
		t.Fatal(err)
	}
	poll(t, "its records are gone, and its certificates revoked", func() (bool, error) {
		now := v.Current()
		_, known := now.Replicas["r3"]
		_, revoked := now.Revoked["AB"]
		_, others := now.Revoked["CD"]
		return !known && revoked && !others, nil
	})
	list, err := client.MemberList(t.Context())
	if err != nil || len(list.Members) != 2 {
		t.Errorf("members: %v, %v", list, err)
	}
	refused("r3", false, `no replica "r3"`)
	// As a crash between the two steps of a removal leaves it.
	commit(store.PutProto(store.ReplicaKey("r3"), &storev1.Replica{Name: "r3"}))
	if err := r.Remove(t.Context(), "r3", false); err != nil {
		t.Errorf("a removal that broke off cannot be repeated: %v", err)
	}
}

// One that was let in and never started is removed from a cluster of one, too: it keeps everybody else out.
func TestRemovalOfOneThatNeverStarted(t *testing.T) {
	client := storetest.StartAll(t, storetest.Configs(t, 1))[0].Client()
	v, s := store.NewView(client, hclog.NewNullLogger()), store.New(client)
	background(t, v.Run)
	<-v.Ready()
	revision, err := s.Commit(t.Context(), store.Change{Puts: []store.Put{store.PutProto(store.ReplicaKey("r1"), &storev1.Replica{Name: "r1"})}})
	if err == nil {
		err = v.Await(t.Context(), revision)
	}
	if err != nil {
		t.Fatal(err)
	}
	url := "https://" + storetest.FreeAddress(t)
	if _, err := client.MemberAddAsLearner(t.Context(), []string{url}); err != nil {
		t.Fatal(err)
	}
	r := members.Removal{Self: "r1", View: v, Store: s, Etcd: client, Hearing: &members.Hearing{View: v}, Log: hclog.NewNullLogger()}
	if err := r.Remove(t.Context(), url, false); err != nil {
		t.Error(err)
	}
	if list, err := client.MemberList(t.Context()); err != nil || len(list.Members) != 1 {
		t.Errorf("members: %v, %v", list, err)
	}
}
