package members_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/enroll"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// host is a first replica that runs, and its door.
type host struct {
	home    members.Home
	member  *members.Member
	etcd    *store.Embedded
	store   *store.Store
	view    *store.View
	address string
}

func firstReplica(t *testing.T) *host {
	t.Helper()
	h := &host{home: newHome(t)}
	record, err := members.Init(h.home, options(t, "r1"))
	if err != nil {
		t.Fatal(err)
	}
	h.member = openHome(t, h.home)
	h.etcd = startEtcd(t, h.home, record)
	h.store = store.New(h.etcd.Client())
	h.view = store.NewView(h.etcd.Client(), hclog.NewNullLogger())
	background(t, h.view.Run)
	<-h.view.Ready()
	h.address = serve(t, h.member.Server().CallersServer(), &enroll.CallersServer{Joiner: &members.Door{
		Member: h.member,
		Tokens: &enroll.Ledger{View: h.view, Store: h.store, Log: hclog.NewNullLogger()},
		Etcd:   h.etcd.Client(),
		Log:    hclog.NewNullLogger(),
	}})
	return h
}

func (h *host) token(t *testing.T) string {
	t.Helper()
	token, err := enroll.NewToken(enroll.TokenRequest{Kind: storev1.JoinTokenKind_JOIN_TOKEN_KIND_REPLICA},
		certs.Fingerprint(h.member.Ring().Signing().Certificate()), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.store.Commit(t.Context(), token.Change); err != nil {
		t.Fatal(err)
	}
	return token.Text
}

// A second replica joins, its etcd learns, and becomes a voter.
func TestJoinAndPromotion(t *testing.T) {
	first := firstReplica(t)
	background(t, members.Promoter{Etcd: first.etcd.Client(), Interval: 50 * time.Millisecond, Log: hclog.NewNullLogger()}.Run)
	home, place, token := newHome(t), options(t, "r2"), first.token(t)
	record, err := members.Join(t.Context(), home, first.address, token, place)
	if err != nil {
		t.Fatal(err)
	}
	if record.Cluster != "testing" || record.State != members.StateExisting || len(record.Peers()) != 2 {
		t.Errorf("record: %+v", record)
	}
	second := openHome(t, home)
	if !second.Ring().Signing().Certificate().Equal(first.member.Ring().Signing().Certificate()) {
		t.Error("another CA")
	}
	a, err := os.ReadFile(home.Authority().Key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(first.home.Authority().Key)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(a, []byte("BEGIN PRIVATE KEY")) || bytes.Equal(a, b) {
		t.Error("the CA's key is not sealed with a wrap key of the joiner's own")
	}
	if _, err := os.Stat(filepath.Join(home.Dir, "pki", "join-seal.key")); err == nil {
		t.Error("the seal key is left over")
	}
	client := startEtcd(t, home, record).Client()
	poll(t, "two voters", func() (bool, error) {
		list, err := client.MemberList(t.Context())
		if err != nil {
			return false, err
		}
		voters := 0
		for _, m := range list.Members {
			if !m.IsLearner && m.Name != "" {
				voters++
			}
		}
		return voters == 2, nil
	})
	if _, err := members.Join(t.Context(), home, first.address, token, place); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("joined twice: %v", err)
	}
}

// An answer that was lost: the same directory asks again with the same token
// and gets in, once; another directory with the same token does not.
func TestJoinCanBeRepeated(t *testing.T) {
	first := firstReplica(t)
	home, place, token := newHome(t), options(t, "r2"), first.token(t)
	if _, err := members.Join(t.Context(), home, first.address, token, place); err != nil {
		t.Fatal(err)
	}
	// A copy without the seal key, as a thief of the token would have.
	copied := newHome(t)
	if err := os.CopyFS(copied.Dir, os.DirFS(home.Dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(copied.RecordFile()); err != nil {
		t.Fatal(err)
	}
	_, err := members.Join(t.Context(), copied, first.address, token, place)
	wantCode(t, "another seal key", err, "JOIN_TOKEN_USED")

	token = first.token(t)
	home = newHome(t)
	_, err = members.Join(t.Context(), home, first.address, first.token(t), members.Options{Name: "r1", PeerListen: storetest.FreeAddress(t)})
	wantCode(t, "a name that is taken", err, "REPLICA_EXISTS")

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = members.Join(ctx, home, first.address, token, options(t, "r3"))
	wantCode(t, "before the last one was started", err, "REPLICA_JOINING")
}

// The door answers a repeated request, adds one member for it, and refuses the
// same token for another address.
func TestDoorIsIdempotent(t *testing.T) {
	first := firstReplica(t)
	home, token := newHome(t), first.token(t)
	place := options(t, "r2")
	var seal []byte
	door := &members.Door{
		Member: first.member, Etcd: first.etcd.Client(), Log: hclog.NewNullLogger(),
		Tokens: &enroll.Ledger{View: first.view, Store: first.store, Log: hclog.NewNullLogger()},
	}
	spy := &enroll.CallersServer{Joiner: joinerFunc(func(ctx context.Context, req *agentv1.JoinReplicaRequest, remote string) (*agentv1.JoinReplicaResponse, error) {
		if _, err := door.Join(ctx, req, remote); err != nil {
			return nil, err
		}
		seal = req.GetSealKey()
		return nil, errdefs.New(errdefs.Internal, "LOST", "the answer is lost")
	})}
	lossy := serve(t, first.member.Server().CallersServer(), spy)
	if _, err := members.Join(t.Context(), home, lossy, token, place); err == nil {
		t.Fatal("the answer was not lost")
	}
	other := &agentv1.JoinReplicaRequest{Token: token, Name: "r2", PeerUrl: "https://127.0.0.1:1", SealKey: seal}
	_, err := door.Join(t.Context(), other, "")
	wantCode(t, "another peer URL", err, "JOIN_TOKEN_USED")
	record, err := members.Join(t.Context(), home, first.address, token, place)
	if err != nil {
		t.Fatalf("repeated: %v", err)
	}
	list, err := first.etcd.Client().MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Members) != 2 || len(record.Peers()) != 2 {
		t.Errorf("members %v, record %+v", list.Members, record)
	}
}

func TestJoinRefuses(t *testing.T) {
	first := firstReplica(t)
	node, err := enroll.NewToken(enroll.TokenRequest{Kind: storev1.JoinTokenKind_JOIN_TOKEN_KIND_NODE},
		certs.Fingerprint(first.member.Ring().Signing().Certificate()), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.store.Commit(t.Context(), node.Change); err != nil {
		t.Fatal(err)
	}
	_, err = members.Join(t.Context(), newHome(t), first.address, node.Text, options(t, "r2"))
	wantCode(t, "a node's token", err, "JOIN_TOKEN_KIND")

	foreign, err := enroll.NewToken(enroll.TokenRequest{Kind: storev1.JoinTokenKind_JOIN_TOKEN_KIND_REPLICA},
		strings.Repeat("ab", 32), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	_, err = members.Join(t.Context(), newHome(t), first.address, foreign.Text, options(t, "r2"))
	if err == nil || !strings.Contains(err.Error(), "not of the cluster that made the join token") {
		t.Errorf("a foreign cluster's token: %v", err)
	}
	_, err = members.Join(t.Context(), newHome(t), first.address, "dvj_nonsense", options(t, "r2"))
	wantCode(t, "nonsense", err, "JOIN_TOKEN_MALFORMED")
}

type joinerFunc func(context.Context, *agentv1.JoinReplicaRequest, string) (*agentv1.JoinReplicaResponse, error)

func (f joinerFunc) Join(ctx context.Context, req *agentv1.JoinReplicaRequest, remote string) (*agentv1.JoinReplicaResponse, error) {
	return f(ctx, req, remote)
}

func wantCode(t *testing.T, what string, err error, code string) {
	t.Helper()
	if e := errdefs.FromStatus(err); e == nil || e.Code != code {
		t.Errorf("%s: got %v, want %s", what, err, code)
	}
}
