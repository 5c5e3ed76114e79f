package inventory

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// recovering is the snapshot of a cluster that returns from a backup.
func recovering(s *cluster.Snapshot, heard ...string) *cluster.Snapshot {
	d := s.Draft()
	d.SetRestore(&storev1.Restore{Epoch: 9, HeardNodes: heard}, 1)
	return d.Snapshot(s.Revision + 1)
}

// TestPlacementAfterARestore: what runs is the truth, and what is nowhere may be on a node that was not heard.
func TestPlacementAfterARestore(t *testing.T) {
	for _, c := range []struct {
		name  string
		world world
		want  string // after the settle time
	}{
		{"it runs where it was", world{"a 3", map[string]string{"a": "R", "b": "-"}, false, ""}, "a 3"},
		{"it has moved since", world{"a 3", map[string]string{"a": "-", "b": "R"}, false, ""}, "b 4"},
		{"it has been brought back elsewhere since, its former copy is left", world{"a 3", map[string]string{"a": "S", "b": "R"}, false, ""}, "b 4"},
		{"a former copy that has crashed", world{"a 3", map[string]string{"a": "S", "b": "R", "c": "S"}, false, ""}, "b 4"},
		{"its own copy is paused", world{"a 3", map[string]string{"a": "P", "b": "R"}, false, ""}, "a 3"},
		{"it runs twice elsewhere", world{"a 3", map[string]string{"a": "S", "b": "R", "c": "R"}, false, ""}, "a 3 b,c"},
		{"it runs twice", world{"a 3", map[string]string{"a": "R", "b": "R"}, false, ""}, "a 3 a,b"},
		{"it is defined twice and runs nowhere", world{"a 3", map[string]string{"a": "S", "b": "S"}, false, ""}, "a 3"},
		{"an operation of the backup has it", world{"a 3", map[string]string{"a": "S", "b": "R"}, true, ""}, "same"},
		{"it is on no node that was heard", world{"a 3", map[string]string{"a": "-", "b": "!?"}, false, ""}, "same"},
		{"it is nowhere", world{"a 3", map[string]string{"a": "-", "b": "-"}, false, ""}, "same"},
		{"its node was not heard", world{"a 3", map[string]string{"a": "!?v", "b": "R"}, false, ""}, "same"},
	} {
		began, since := time.Now(), map[string]time.Time{}
		var last *vmChange
		for _, at := range []time.Duration{0, settleTime} {
			p := c.world.placer(t, began.Add(at), since)
			p.snapshot = recovering(p.snapshot)
			last = p.decide("v")
		}
		if got := then(last); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestDifferences(t *testing.T) {
	w := world{"a 3", map[string]string{"a": "-", "b": "R"}, false, ""}
	p := w.placer(t, time.Now(), map[string]time.Time{})
	d := p.snapshot.Draft()
	d.Nodes.Put("a", &storev1.Node{Id: "a"}, 1)
	d.Nodes.Put("b", &storev1.Node{Id: "b"}, 1)
	d.VMs.Put("off", &storev1.VM{Uuid: "off", Name: "off", Node: "b", Domain: encode(&agentv1.Domain{State: debvisorv1.VMState_VM_STATE_RUNNING})}, 1)
	s := recovering(d.Snapshot(2), "a")
	i := New(Config{Log: hclog.NewNullLogger()})
	i.nodes = p.nodes
	for _, n := range i.nodes {
		n.heardNow = true
	}
	for uuid, state := range map[string]debvisorv1.VMState{"off": debvisorv1.VMState_VM_STATE_SHUTOFF, "new": debvisorv1.VMState_VM_STATE_RUNNING} {
		i.nodes["b"].domains[uuid] = domain{&agentv1.Domain{Uuid: uuid, Name: uuid, State: state}, nil, time.Now()}
	}
	if got := i.newlyHeard(s); len(got) != 1 || got[0] != "b" {
		t.Errorf("newly heard: %v", got)
	}
	i.nodes["b"].known = false
	if got := i.newlyHeard(s); len(got) > 0 {
		t.Errorf("one that has not told of its VMs counts as heard: %v", got)
	}
	i.nodes["b"].known = true
	i.nodes["b"].libvirtDown = true
	if got := i.newlyHeard(s); len(got) > 0 {
		t.Errorf("one whose libvirt does not answer counts as heard: %v", got)
	}
	i.nodes["b"].libvirtDown = false
	i.Foreign("b", []string{"op/1/x", "op/2/y"})
	i.ForeignEnded("b", "op/1/x")
	if got := i.newlyHeard(s); len(got) > 0 {
		t.Errorf("one that is at work for the former cluster counts as heard: %v", got)
	}
	i.nodes["b"].foreignSince = time.Now().Add(-foreignFor)
	if got := i.newlyHeard(s); len(got) != 1 {
		t.Errorf("what does not end is waited for, for ever")
	}
	i.Foreign("b", []string{"op/2/y"})
	i.ForeignEnded("b", "op/2/y")
	if got := i.newlyHeard(s); len(got) != 1 {
		t.Errorf("what has ended is waited for")
	}
	told := strings.Join(i.differences(s, []string{"a", "b", "gone"}), "\n")
	for _, want := range []string{"VM v (v) is not on a", "b runs VM v (v), which was on a", "b runs VM new (new), which the backup does not know", "VM off (off) is off on b"} {
		if !strings.Contains(told, want) {
			t.Errorf("not told: %q in\n%s", want, told)
		}
	}
	if lines := strings.Count(told, "\n") + 1; lines != 4 {
		t.Errorf("%d differences:\n%s", lines, told)
	}
}
