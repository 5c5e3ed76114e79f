package enroll_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/enroll"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestNewTokenRefuses(t *testing.T) {
	for field, req := range map[string]enroll.TokenRequest{
		"kind":        {},
		"ttl_seconds": {Kind: node, Life: 25 * time.Hour},
		"node_id":     {Kind: node, Node: "a/b"},
		"replace":     {Kind: replica, Node: "r2", Replace: true},
	} {
		_, err := enroll.NewToken(req, strings.Repeat("0", 64), time.Now())
		if e := errdefs.FromStatus(err); e == nil || e.Kind != errdefs.InvalidArgument || e.Context["field"] != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := enroll.NewToken(enroll.TokenRequest{Kind: node, Replace: true}, "", time.Now()); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("a token to replace any node: %v", err)
	}
}

func TestTokensAreListedAndRevoked(t *testing.T) {
	o := open(t)
	now := time.Now()
	first := o.token(t, enroll.TokenRequest{Kind: node, By: "ada"}, now.Add(-10*time.Minute))
	second := o.token(t, enroll.TokenRequest{Kind: replica, By: "ada"}, now)
	old := o.token(t, enroll.TokenRequest{Kind: node}, now.Add(-10*24*time.Hour))
	used := o.token(t, enroll.TokenRequest{Kind: node}, now)
	if _, err := o.enrol(t, used.Text, "node-1", newKey(t)); err != nil {
		t.Fatal(err)
	}
	o.node(t, "node-1")

	live := enroll.LiveTokens(o.view.Current(), now)
	if len(live) != 2 || live[0].GetId() != first.Record.GetId() || live[1].GetId() != second.Record.GetId() {
		t.Fatalf("live tokens: %v", live)
	}
	if live[0].GetSecretHash() != nil || live[0].GetCreatedBy() != "ada" {
		t.Errorf("listed: %v", live[0])
	}
	if stale := enroll.Stale(o.view.Current(), now, 10); len(stale) != 1 || !strings.HasSuffix(stale[0], old.Record.GetId()) {
		t.Errorf("stale: %v", stale)
	}

	change, err := enroll.RevokeToken(o.view.Current(), first.Record.GetId())
	if err != nil {
		t.Fatal(err)
	}
	o.commit(t, change)
	_, err = o.enrol(t, first.Text, "node-2", newKey(t))
	refused(t, err, "JOIN_TOKEN_UNKNOWN")
	_, err = enroll.RevokeToken(o.view.Current(), first.Record.GetId())
	refused(t, err, "JOIN_TOKEN_NOT_FOUND")
	_, err = enroll.RevokeToken(o.view.Current(), used.Record.GetId())
	refused(t, err, "JOIN_TOKEN_USED")
}

func TestTokenCarriesTheFingerprint(t *testing.T) {
	o := open(t)
	if fp := certs.Fingerprint(o.ca.Certificate()); !strings.Contains(o.nodeToken(t), fp) {
		t.Error("the token does not name the CA")
	}
}

func TestSweeperDeletesStaleTokens(t *testing.T) {
	o := open(t)
	old := o.token(t, enroll.TokenRequest{Kind: node}, time.Now().Add(-10*24*time.Hour)).Record.GetId()
	live := o.token(t, enroll.TokenRequest{Kind: node}, time.Now()).Record.GetId()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	changed := o.view.Changed()
	go func() { done <- enroll.Sweeper{View: o.view, Store: o.store, Log: hclog.NewNullLogger()}.Run(ctx) }()
	<-changed
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	tokens := o.view.Current().JoinTokens
	if _, ok := tokens[live]; !ok || len(tokens) != 1 {
		t.Errorf("left: %v, wanted %s and not %s", tokens, live, old)
	}
}
