package metrics

import (
	"context"
	"errors"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
)

// TestRequestsOfARealEtcdAreMeasured looks at etcd's member by a client, as the
// replica does, and at what is told once it does not answer.
func TestRequestsOfARealEtcdAreMeasured(t *testing.T) {
	r := measured(t, cluster.Empty(), nil)
	cfg := storetest.Configs(t, 1)[0]
	cfg.Meter = r.etcd
	client := storetest.Start(t, cfg).Client()
	if _, err := store.New(client).Commit(t.Context(), store.Change{Puts: []store.Put{store.PutString(store.RevokedKey("1"), "x")}}); err != nil {
		t.Fatal(err)
	}
	r.etcd.look(t.Context(), func(ctx context.Context) (store.MemberState, error) { return store.Member(ctx, client) }, hclog.NewNullLogger())
	all := r.gather(t)
	if v := values(all["debvisor_etcd_request_duration_seconds"]); v["Txn"] != 1 || v["Range"] == 0 {
		t.Errorf("requests %v", v)
	}
	if failed := all["debvisor_etcd_request_failures_total"]; failed != nil {
		t.Logf("some failed until etcd was up: %v", failed)
	}
	check(t, all, "etcd_up", map[string]float64{"": 1})
	check(t, all, "etcd_has_leader", map[string]float64{"": 1})
	check(t, all, "etcd_alarms", map[string]float64{"": 0})
	for _, name := range []string{"etcd_db_size_bytes", "etcd_db_in_use_bytes", "etcd_db_quota_bytes", "etcd_raft_term", "etcd_raft_index"} {
		if v := values(all["debvisor_"+name]); v[""] <= 0 {
			t.Errorf("%s is %v", name, v)
		}
	}
	r.etcd.look(t.Context(), func(context.Context) (store.MemberState, error) { return store.MemberState{}, errors.New("down") }, hclog.NewNullLogger())
	check(t, r.gather(t), "etcd_up", map[string]float64{"": 0})
}
