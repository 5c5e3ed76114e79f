package api_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

func TestRetentionPolicies(t *testing.T) {
	r := startStorage(t)
	spec := &debvisorv1.RetentionPolicySpec{
		Name: "daily", Rules: &debvisorv1.RetentionPolicy{KeepDailyDays: 7}, Datasets: []*debvisorv1.DatasetRef{ds("tank/x"), ds("tank/twin", "b")},
		Schedule: "30 2 * * *", TimeZone: "Europe/Berlin", SnapshotLabel: "daily", Recursive: true,
	}
	set, err := r.storage.SetRetentionPolicy(t.Context(), spec)
	if err != nil || set.GetSpec().GetDatasets()[0].GetNode().GetNodeId().GetId() != "a" || set.GetRun().GetNextDue() == nil || set.GetOperationId() == "" {
		t.Fatalf("%v, %v", set, err)
	}
	record := proto.CloneOf(r.view.Current().RetentionPolicies["daily"].Value)
	record.Run = &storev1.StoragePolicyRun{LastDue: timestamppb.Now(), Fired: 3, Skipped: 1, LastSkip: "in use", LastOperations: []string{"op-1"}}
	r.put(store.PutProto(store.RetentionPolicyKey("daily"), record))
	spec.Paused = true
	if set, err = r.storage.SetRetentionPolicy(t.Context(), spec); err != nil || set.GetRun().GetFired() != 3 || set.GetRun().GetNextDue() != nil {
		t.Errorf("what a policy has done stays, and a paused one is not due: %v, %v", set, err)
	}
	list, err := r.storage.ListRetentionPolicies(t.Context(), &debvisorv1.Empty{})
	if err != nil || len(list.GetPolicies()) != 1 || list.GetPolicies()[0].GetSpec().GetSchedule() != "30 2 * * *" || list.GetPolicies()[0].GetRun().GetLastSkip() != "in use" {
		t.Errorf("%v, %v", list, err)
	}
	ref := &debvisorv1.StoragePolicyRef{Name: "daily"}
	if _, err := r.storage.DeleteRetentionPolicy(t.Context(), ref); err != nil || len(r.view.Current().RetentionPolicies) != 0 {
		t.Errorf("it is still there: %v", err)
	}
	_, err = r.storage.DeleteRetentionPolicy(t.Context(), ref)
	refusedAs(t, "once more", err, "POLICY_NOT_FOUND")
}

// TestBadPolicies has every field of both kinds of policies.
func TestBadPolicies(t *testing.T) {
	r := startStorage(t)
	keep := &debvisorv1.RetentionPolicy{KeepLast: 1}
	for what, change := range map[string]func(*debvisorv1.RetentionPolicySpec){
		"INVALID_FIELD name":               func(p *debvisorv1.RetentionPolicySpec) { p.Name = "No Good" },
		"INVALID_FIELD rules":              func(p *debvisorv1.RetentionPolicySpec) { p.Rules = nil },
		"INVALID_FIELD rules ":             func(p *debvisorv1.RetentionPolicySpec) { p.Rules = &debvisorv1.RetentionPolicy{} },
		"INVALID_FIELD rules.keep_pattern": func(p *debvisorv1.RetentionPolicySpec) { p.Rules = &debvisorv1.RetentionPolicy{KeepPattern: "[a"} },
		"INVALID_FIELD rules.only_pattern": func(p *debvisorv1.RetentionPolicySpec) {
			p.Rules = &debvisorv1.RetentionPolicy{KeepLast: 1, OnlyPattern: "[a"}
		},
		"INVALID_FIELD rules.time_zone": func(p *debvisorv1.RetentionPolicySpec) {
			p.Rules = &debvisorv1.RetentionPolicy{KeepLast: 1, TimeZone: "x"}
		},
		"INVALID_FIELD schedule":       func(p *debvisorv1.RetentionPolicySpec) { p.Schedule = "every second" },
		"INVALID_FIELD schedule ":      func(p *debvisorv1.RetentionPolicySpec) { p.Schedule = "0 0 31 2 *" },
		"INVALID_FIELD time_zone":      func(p *debvisorv1.RetentionPolicySpec) { p.TimeZone = "Europe/Nowhere" },
		"INVALID_FIELD datasets":       func(p *debvisorv1.RetentionPolicySpec) { p.Datasets = nil },
		"DATASET_NOT_FOUND":            func(p *debvisorv1.RetentionPolicySpec) { p.Datasets = append(p.Datasets, ds("tank/none")) },
		"AMBIGUOUS_DATASET":            func(p *debvisorv1.RetentionPolicySpec) { p.Datasets = append(p.Datasets, ds("tank/twin")) },
		"NODE_NOT_FOUND":               func(p *debvisorv1.RetentionPolicySpec) { p.Datasets = append(p.Datasets, ds("tank/x", "zz")) },
		"INVALID_FIELD snapshot_label": func(p *debvisorv1.RetentionPolicySpec) { p.SnapshotLabel = "a\x01" },
		"DATASET_IS_COPY": func(p *debvisorv1.RetentionPolicySpec) {
			p.Datasets, p.SnapshotLabel = []*debvisorv1.DatasetRef{ds("tank/x", "c")}, "l"
		},
	} {
		p := &debvisorv1.RetentionPolicySpec{Name: "p", Rules: keep, Datasets: []*debvisorv1.DatasetRef{ds("tank/x")}}
		change(p)
		_, err := r.storage.SetRetentionPolicy(t.Context(), p)
		refusedAs(t, "retention "+what, err, strings.TrimSpace(what))
	}
	for what, change := range map[string]func(*debvisorv1.ReplicationPolicySpec){
		"INVALID_FIELD name":                       func(p *debvisorv1.ReplicationPolicySpec) { p.Name = "-" },
		"INVALID_FIELD datasets":                   func(p *debvisorv1.ReplicationPolicySpec) { p.Datasets = nil },
		"INVALID_FIELD targets":                    func(p *debvisorv1.ReplicationPolicySpec) { p.Targets = nil },
		"INVALID_FIELD targets[0].node":            func(p *debvisorv1.ReplicationPolicySpec) { p.Targets[0].Node = nil },
		"INVALID_FIELD targets[0].node.node_id.id": func(p *debvisorv1.ReplicationPolicySpec) { p.Targets[0].Node = nodeRef("a") },
		"INVALID_FIELD targets[0].prefix":          func(p *debvisorv1.ReplicationPolicySpec) { p.Targets[0].Prefix = "../tank" },
		"INVALID_FIELD targets[0].prefix ":         func(p *debvisorv1.ReplicationPolicySpec) { p.Targets[0].Prefix = "tank/" + strings.Repeat("l", 240) },
		"NODE_NOT_FOUND":                           func(p *debvisorv1.ReplicationPolicySpec) { p.Targets[0].Node = nodeRef("zz") },
		"INVALID_FIELD schedule":                   func(p *debvisorv1.ReplicationPolicySpec) { p.Schedule = "every 1s" },
		"INVALID_FIELD time_zone":                  func(p *debvisorv1.ReplicationPolicySpec) { p.TimeZone = "Moon" },
		"INVALID_FIELD options.bandwidth_mib": func(p *debvisorv1.ReplicationPolicySpec) {
			p.Options = &debvisorv1.ReplicationOptions{BandwidthMib: 1 << 30}
		},
		"INVALID_FIELD datasets[1] twice": func(p *debvisorv1.ReplicationPolicySpec) { p.Datasets = append(p.Datasets, ds("tank/x", "a")) },
		"INVALID_FIELD targets[0] two onto one copy": func(p *debvisorv1.ReplicationPolicySpec) {
			p.Datasets, p.Targets[0].Node = []*debvisorv1.DatasetRef{ds("tank/twin", "a"), ds("tank/twin", "b")}, nodeRef("c")
		},
		"DATASET_NOT_FOUND":                           func(p *debvisorv1.ReplicationPolicySpec) { p.Datasets = append(p.Datasets, ds("tank/none")) },
		"INVALID_FIELD options.no_snapshot of a copy": func(p *debvisorv1.ReplicationPolicySpec) { p.Datasets[0] = ds("tank/x", "c") },
		"INVALID_FIELD datasets more than one transaction": func(p *debvisorv1.ReplicationPolicySpec) {
			for range 200 {
				p.Datasets = append(p.Datasets, ds("tank/x"))
			}
		},
	} {
		p := &debvisorv1.ReplicationPolicySpec{Name: "p", Datasets: []*debvisorv1.DatasetRef{ds("tank/x")}, Targets: []*debvisorv1.ReplicationTarget{{Node: nodeRef("b")}}}
		change(p)
		_, err := r.storage.SetReplicationPolicy(t.Context(), p)
		words := strings.Fields(what)
		refusedAs(t, "replication "+what, err, strings.Join(words[:min(2, len(words))], " "))
	}
	if n := len(r.view.Current().RetentionPolicies) + len(r.view.Current().ReplicationPolicies) + len(r.view.Current().Replications); n != 0 {
		t.Errorf("refusals left %d records", n)
	}
}
