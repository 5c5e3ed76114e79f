package inventory

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// world is one VM "v" in a tiny notation. record is "node generation
// [conflicting,nodes]", or empty: no record. Each node is its liveness and what
// it reports of the VM: "R" running, "S" shut off, "P" paused, "I" incoming,
// "-" nothing, "?" not told to this leader; "=" in front: not heard since, "!": not heard at all, "~": its
// libvirt is down; "?v": the record of the node lists the VM.
type world struct {
	record string
	nodes  map[string]string
	inUse  bool
	lost   string // node whose copy of the VM is lost; in front "-": it is destroyed since
}

func (w world) placer(t *testing.T, now time.Time, since map[string]time.Time) *placer {
	t.Helper()
	d := cluster.Empty().Draft()
	if w.record != "" {
		words := strings.Fields(w.record)
		vm := &storev1.VM{Uuid: "v", Name: "v", Node: words[0]}
		if _, err := fmt.Sscan(words[1], &vm.Generation); err != nil {
			t.Fatal(err)
		}
		if words[0] == "new" { // brought to a node that has not told of it yet
			vm.Node = words[2]
			vm.Domain = encode(&agentv1.Domain{Uuid: "v", Name: "v"})
		} else if len(words) > 2 {
			vm.ConflictNodes = strings.Split(words[2], ",")
		}
		d.VMs.Put("v", vm, 1)
	}
	if node, destroyed := strings.CutPrefix(w.lost, "-"); node != "" {
		state := storev1.LostCopyState_LOST_COPY_STATE_AWAITED
		if destroyed {
			state = storev1.LostCopyState_LOST_COPY_STATE_GONE
		}
		d.LostCopies.Put("v/"+node, &storev1.LostCopy{VmUuid: "v", Node: node, State: state}, 1)
	}
	if w.inUse {
		d.InUse.Put("vm/v", "op", 1)
	}
	p := &placer{snapshot: d.Snapshot(1), nodes: map[string]*node{}, now: now, since: since}
	for id, text := range w.nodes {
		n := &node{id: id, liveness: online, known: true, domains: map[string]domain{}, heard: now}
		if rest, ok := strings.CutPrefix(text, "="); ok {
			n.heard, text = now.Add(-settleTime), rest
		}
		if rest, ok := strings.CutPrefix(text, "!"); ok {
			n.liveness, text = unreachable, rest
		}
		if rest, ok := strings.CutPrefix(text, "~"); ok {
			n.libvirtDown, text = true, rest
		}
		states := map[string]debvisorv1.VMState{
			"R": debvisorv1.VMState_VM_STATE_RUNNING, "S": debvisorv1.VMState_VM_STATE_SHUTOFF,
			"P": debvisorv1.VMState_VM_STATE_PAUSED, "I": debvisorv1.VMState_VM_STATE_INCOMING,
		}
		switch state, ok := states[text]; {
		case ok:
			dom := &agentv1.Domain{Uuid: "v", Name: "v", State: state}
			n.domains["v"] = domain{dom, encode(dom), now}
		case strings.HasPrefix(text, "?"):
			n.known = false
			if text == "?v" {
				n.listed = []string{"v"}
			}
		}
		p.nodes[id] = n
	}
	p.ids = slices.Sorted(maps.Keys(p.nodes))
	return p
}

// then is what becomes of the record: as it is written in a world, "deleted",
// or "same".
func then(c *vmChange) string {
	switch {
	case c == nil:
		return "same"
	case c.vm == nil:
		return "deleted"
	}
	text := fmt.Sprintf("%s %d", c.vm.GetNode(), c.vm.GetGeneration())
	if nodes := c.vm.GetConflictNodes(); len(nodes) > 0 {
		text += " " + strings.Join(nodes, ",")
	}
	return text
}

func TestPlacement(t *testing.T) {
	for _, c := range []struct {
		name        string
		world       world
		now, settle string // at once, and after the settle time
	}{
		{"a new VM", world{"", map[string]string{"a": "R", "b": "-"}, false, ""}, "a 1", "a 1"},
		{"a new VM that is shut off", world{"", map[string]string{"a": "-", "b": "S"}, false, ""}, "b 1", "b 1"},
		{"a new VM defined on two nodes belongs where it runs", world{"", map[string]string{"a": "S", "b": "R"}, false, ""}, "b 1", "b 1"},
		{"one that is being received is not there yet", world{"", map[string]string{"a": "I"}, false, ""}, "same", "same"},
		{"a new VM of a node that is not heard", world{"", map[string]string{"a": "!R"}, false, ""}, "same", "same"},
		{"in use without a record", world{"", map[string]string{"a": "R"}, true, ""}, "same", "same"},

		{"moved without us", world{"a 3", map[string]string{"a": "-", "b": "R"}, false, ""}, "b 4", "b 4"},
		{"moved without us, paused", world{"a 3", map[string]string{"a": "-", "b": "P"}, false, ""}, "b 4", "b 4"},
		{"on its way without us", world{"a 3", map[string]string{"a": "-", "b": "I"}, false, ""}, "same", "same"},
		{"its node is not heard", world{"a 3", map[string]string{"a": "!-", "b": "R"}, false, ""}, "same", "same"},
		{"its node has not told yet", world{"a 3", map[string]string{"a": "?", "b": "R"}, false, ""}, "same", "same"},
		{"its node's libvirt is down", world{"a 3", map[string]string{"a": "~-", "b": "R"}, false, ""}, "same", "same"},
		{"moved by an operation", world{"a 3", map[string]string{"a": "-", "b": "R"}, true, ""}, "same", "same"},
		{"an operation at work, gone from everywhere", world{"a 3", map[string]string{"a": "-", "b": "-"}, true, ""}, "same", "same"},

		{"gone from everywhere", world{"a 3", map[string]string{"a": "-", "b": "-"}, false, ""}, "same", "deleted"},
		{"perhaps on one that has not told yet", world{"a 3", map[string]string{"a": "-", "b": "?"}, false, ""}, "same", "same"},
		{"perhaps still on one that is lost", world{"a 3", map[string]string{"a": "-", "b": "!?v"}, false, ""}, "same", "same"},
		{"not on one that is lost", world{"a 3", map[string]string{"a": "-", "b": "!?"}, false, ""}, "same", "deleted"},

		{"its lost copy runs", world{"a 3", map[string]string{"a": "R", "b": "R"}, false, "b"}, "a 3", "a 3"},
		{"its lost copy is all that is there", world{"a 3", map[string]string{"a": "-", "b": "R"}, false, "b"}, "same", "same"},
		{"its lost copy is destroyed", world{"a 3", map[string]string{"a": "-", "b": "-"}, false, "b"}, "same", "deleted"},
		{"moved to where its lost copy was once", world{"a 3", map[string]string{"a": "-", "b": "R"}, false, "-b"}, "b 4", "b 4"},
		{"brought to a node that never told of it", world{"new 4 a", map[string]string{"a": "-", "b": "-"}, false, "b"}, "same", "same"},
		{"brought to a node that tells of it", world{"new 4 a", map[string]string{"a": "S", "b": "R"}, false, "b"}, "a 4", "a 4"},

		{"running twice is a conflict, not a move", world{"a 3", map[string]string{"a": "R", "b": "R"}, false, ""}, "a 3", "a 3 a,b"},
		{"running twice while an operation is at work", world{"a 3", map[string]string{"a": "R", "b": "R"}, true, ""}, "same", "a 3 a,b"},
		{"running twice, neither at home", world{"a 3", map[string]string{"a": "-", "b": "R", "c": "R"}, false, ""}, "same", "a 3 b,c"},
		{"the other's word is old", world{"a 3", map[string]string{"a": "R", "b": "!R"}, false, ""}, "a 3", "a 3"},
		{"the other has not been heard since", world{"a 3", map[string]string{"a": "R", "b": "=R"}, false, ""}, "a 3", "a 3"},
		{"the other's libvirt is down", world{"a 3", map[string]string{"a": "R", "b": "~R"}, false, ""}, "a 3", "a 3"},
		{"a conflict stands while a libvirt is down", world{"a 3 a,b", map[string]string{"a": "R", "b": "~R"}, false, ""}, "a 3 a,b", "a 3 a,b"},
		{"a conflict stands while one is not heard", world{"a 3 a,b", map[string]string{"a": "R", "b": "!R"}, false, ""}, "a 3 a,b", "a 3 a,b"},
		{"a conflict stands until the new leader was told", world{"a 3 a,b", map[string]string{"a": "?", "b": "?"}, false, ""}, "same", "same"},
		{"a conflict over", world{"a 3 a,b", map[string]string{"a": "R", "b": "S"}, false, ""}, "a 3", "a 3"},
		{"a conflict over, the copy at home destroyed", world{"a 3 a,b", map[string]string{"a": "-", "b": "R"}, false, ""}, "b 4", "b 4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			began, since := time.Now(), map[string]time.Time{}
			if got := then(c.world.placer(t, began, since).decide("v")); got != c.now {
				t.Errorf("at once: %s, want %s", got, c.now)
			}
			if got := then(c.world.placer(t, began.Add(settleTime), since).decide("v")); got != c.settle {
				t.Errorf("after the settle time: %s, want %s", got, c.settle)
			}
		})
	}
}

func TestADoubtThatPassesBeginsAnew(t *testing.T) {
	began, since := time.Now(), map[string]time.Time{}
	both := world{"a 3", map[string]string{"a": "R", "b": "R"}, true, ""}
	one := world{"a 3", map[string]string{"a": "R", "b": "P"}, true, ""}
	both.placer(t, began, since).decide("v")
	one.placer(t, began.Add(time.Second), since).decide("v")
	if got := then(both.placer(t, began.Add(settleTime), since).decide("v")); got != "same" {
		t.Errorf("two short overlaps were taken for a conflict: %s", got)
	}
}

func TestReports(t *testing.T) {
	n := newNode("n", &storev1.NodeStatus{Domains: []string{"x", "y"}}, time.Now())
	if !n.mayHold("x") || n.known {
		t.Error("what the record lists is forgotten")
	}
	n.report(&agentv1.Inventory{Complete: true, LibvirtDown: true})
	if n.known || !n.libvirtDown || !slices.Equal(n.uuids(), []string{"x", "y"}) {
		t.Error("an inventory without libvirt said something of VMs")
	}
	n.urgent = false
	n.report(&agentv1.Inventory{Complete: true, Domains: []*agentv1.Domain{{Uuid: "y"}, {Uuid: "z"}}})
	if !n.known || n.libvirtDown || !slices.Equal(n.uuids(), []string{"y", "z"}) || !n.urgent {
		t.Errorf("complete: %v", n.uuids())
	}
	n.urgent = false
	n.report(&agentv1.Inventory{Capacity: &debvisorv1.NodeCapacity{Cpus: 2}})
	if n.urgent || n.capacity.GetCpus() != 2 {
		t.Error("a change of capacity is written at once")
	}
	n.report(&agentv1.Inventory{Gone: []string{"y"}, Domains: []*agentv1.Domain{{Uuid: "a"}}})
	if !slices.Equal(n.uuids(), []string{"a", "z"}) || !n.urgent {
		t.Errorf("incremental: %v", n.uuids())
	}
	n.forgetDomains() // the host was restarted
	if n.known || !slices.Equal(n.uuids(), []string{"a", "z"}) {
		t.Errorf("after a boot: %v", n.uuids())
	}
}

func TestWhatVMsTellFitsIntoTransactions(t *testing.T) {
	var changes []*vmChange
	for range 300 {
		changes = append(changes, &vmChange{vm: &storev1.VM{Domain: make([]byte, 20_000)}})
	}
	for left := changes; len(left) > 0; {
		chunk := firstChanges(left)
		left = left[len(chunk):]
		if bytes := len(chunk) * 20_000; bytes > 1_000_000 || len(chunk) == 0 {
			t.Fatalf("a transaction is to take %d VMs of %d bytes in all", len(chunk), bytes)
		}
	}
	w := world{"a 3", map[string]string{"a": "R"}, false, ""}
	p := w.placer(t, time.Now(), map[string]time.Time{})
	d := p.nodes["a"].domains["v"]
	d.encoded = make([]byte, 2_000_000)
	p.nodes["a"].domains["v"] = d
	if got := p.decide("v"); got != nil {
		t.Errorf("a VM of which an agent tells %d bytes is written: etcd takes no such record, nor the others with it", len(d.encoded))
	}
}
