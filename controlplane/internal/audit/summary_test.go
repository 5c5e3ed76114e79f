package audit

import (
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

func node(id string) *debvisorv1.NodeRef {
	return &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: id}}
}

func TestSummary(t *testing.T) {
	for want, m := range map[string]proto.Message{
		"": &debvisorv1.Empty{},
		"vm=web1 target=node-2 allow_downtime=true options.bandwidth_mib=5 options.max_downtime_ms=7": &debvisorv1.VMMigrateSpec{
			Vm: &debvisorv1.VMRef{VmId: "web1"}, Target: node("node-2"), AllowDowntime: true,
			Options: &debvisorv1.MigrateOptions{BandwidthMib: 5, MaxDowntimeMs: 7},
		},
		`node=a reason="two words"`:            &debvisorv1.CordonRequest{Node: node("a"), Reason: "two words"},
		`node=a reason="x\n\x1b[1m\xff\" y=z"`: &debvisorv1.CordonRequest{Node: node("a"), Reason: "x\n\x1b[1m\xff\" y=z"},
		"node=a reason=größe":                  &debvisorv1.CordonRequest{Node: node("a"), Reason: "größe"},
		"nodes[0]=a nodes[1]=b":                &debvisorv1.RebalancePlanRequest{Nodes: []*debvisorv1.NodeRef{node("a"), node("b")}},
		"node={}":                              &debvisorv1.CordonRequest{Node: &debvisorv1.NodeRef{}},
		"kind=JOIN_TOKEN_KIND_NODE node_id=n1": &debvisorv1.JoinTokenRequest{Kind: debvisorv1.JoinTokenKind_JOIN_TOKEN_KIND_NODE, NodeId: "n1"},
	} {
		if got := Summary(m); got != want {
			t.Errorf("%v: %s, want %s", m, got, want)
		}
	}
	if got := Summary(nil); got != "" {
		t.Errorf("of nothing: %s", got)
	}
}

func TestSummaryHidesSecrets(t *testing.T) {
	got := Summary(&agentv1.EnrollRequest{Token: "very-secret"})
	if strings.Contains(got, "very") || !strings.Contains(got, "token=…") {
		t.Error(got)
	}
	// Where a name belongs, somebody may put the whole thing.
	whole := "0123456789abcdef_" + strings.Repeat("5ec2e7", 12)
	for _, prefix := range []string{"dvk_", "dvj_"} {
		got := Summary(&debvisorv1.KeyRef{Id: prefix + whole})
		if got != "id="+prefix+"0123456789abcdef…" {
			t.Error(got)
		}
	}
}

func TestSummaryIsShort(t *testing.T) {
	var nodes []*debvisorv1.NodeRef
	for range 1000 {
		nodes = append(nodes, node(strings.Repeat("ö", 300)))
	}
	for _, m := range []proto.Message{
		&debvisorv1.RebalancePlanRequest{Nodes: nodes},
		&debvisorv1.CordonRequest{Reason: strings.Repeat("\x00", 1<<20)},
		&debvisorv1.AuditQuery{Events: strings.Split(strings.Repeat("a,", 1000), ",")},
	} {
		got := Summary(m)
		if n := utf8.RuneCountInString(got); n > maxArgs || !utf8.ValidString(got) || !strings.Contains(got, "…") {
			t.Errorf("%d characters: %s", n, got)
		}
	}
	if got := clip(strings.Repeat("ä", 64), 64); got != strings.Repeat("ä", 64) {
		t.Errorf("what fits is clipped: %s", got)
	}
	if got := clip(strings.Repeat("ä", 65), 64); got != strings.Repeat("ä", 63)+"…" {
		t.Errorf("%s", got)
	}
}

func BenchmarkSummary(b *testing.B) {
	m := &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{VmId: "web1"}, Target: node("node-2"), Options: &debvisorv1.MigrateOptions{BandwidthMib: 5}}
	b.ReportAllocs()
	for b.Loop() {
		Summary(m)
	}
}
