package inventory

import (
	"fmt"
	"testing"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// large is 1,000 nodes with 50 VMs each, all as the records say.
func large() (*Inventory, *cluster.Snapshot) {
	i := New(Config{})
	i.nodes = map[string]*node{}
	d := cluster.Empty().Draft()
	for n := range 1000 {
		id := fmt.Sprintf("node-%04d", n)
		at := &node{id: id, liveness: online, known: true, heard: time.Now(), domains: map[string]domain{}}
		for v := range 50 {
			uuid := fmt.Sprintf("%04d-%02d", n, v)
			dom := &agentv1.Domain{Uuid: uuid, Name: uuid, State: debvisorv1.VMState_VM_STATE_RUNNING, MemoryBytes: 1 << 30, Persistent: true}
			at.domains[uuid] = domain{dom, encode(dom), time.Now()}
			d.VMs.Put(uuid, &storev1.VM{Uuid: uuid, Name: uuid, Node: id, Generation: 1, Domain: at.domains[uuid].encoded}, 1)
		}
		i.nodes[id] = at
	}
	return i, d.Snapshot(1)
}

// Whoever looks holds the lock that every heartbeat takes: with 3 s of it nodes
// would be taken for dead.
func TestALookAtALargeClusterHoldsUpNoHeartbeat(t *testing.T) {
	i, s := large()
	began := time.Now()
	if changes := i.decideAll(s); len(changes) > 0 {
		t.Fatalf("%d VMs are as they should be and would change", len(changes))
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("a look at 1,000 nodes with 50,000 VMs takes %s", took)
	}
}

func BenchmarkLook(b *testing.B) {
	i, s := large()
	for b.Loop() {
		i.decideAll(s)
	}
}
