package inventory

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// The kinds of operations that the inventory orders by itself; package power
// advances them.
const (
	kindStart     = "vm.start"
	kindAutostart = "vm.autostart"
)

// system is the principal of what the cluster does by itself.
const system = "system"

// takeAutostart takes libvirt's own autostart over, wherever it is found on:
// the VM's becomes ours, and libvirt's is ordered off, once for each time that
// a node has said so. Otherwise libvirt would start the VM after a boot
// wherever it belongs by then.
func (p *placer) takeAutostart(uuid string, vm *storev1.VM) []*storev1.Operation {
	if len(vm.GetConflictNodes()) > 0 {
		return nil // nothing is done to it
	}
	var orders []*storev1.Operation
	for _, id := range p.tellers(uuid) {
		d, ok := p.claim(id, uuid)
		if !ok || !d.GetAutostart() || d.GetState() == debvisorv1.VMState_VM_STATE_INCOMING || p.nodes[id].libvirtDown {
			continue
		}
		if at, asked := p.takenAt(uuid, id); asked && !d.at.After(at) {
			continue // said before it was turned off, or while it is
		}
		if id == vm.GetNode() {
			vm.Autostart = true
		}
		orders = append(orders, ordered(
			"op-"+strings.ToLower(ulid.Make().String()), kindAutostart, agentv1.PowerAction_POWER_ACTION_TAKE_AUTOSTART, vm, id, p.now,
		))
	}
	return orders
}

// takenAt is when libvirt's autostart was last turned off for a VM on a node,
// or was tried to be; one at work counts as later than anything.
func (p *placer) takenAt(uuid, node string) (at time.Time, asked bool) {
	if p.taken == nil {
		p.taken = map[string]time.Time{}
		for _, entry := range p.snapshot.Operations {
			op := entry.Value
			if op.GetKind() != kindAutostart {
				continue
			}
			key, ended := op.GetPower().GetVmUuid()+"/"+op.GetPower().GetNode(), p.now.Add(time.Hour)
			if task.OpEnded(op.GetState()) {
				ended = op.GetEndedAt().AsTime()
			}
			if ended.After(p.taken[key]) {
				p.taken[key] = ended
			}
		}
	}
	at, asked = p.taken[uuid+"/"+node]
	return at, asked
}

// ordered is the record of an operation that the cluster orders by itself. It
// holds nothing: what it holds is written with it.
func ordered(id, kind string, action agentv1.PowerAction, vm *storev1.VM, node string, now time.Time) *storev1.Operation {
	return &storev1.Operation{
		Id: id, Kind: kind, State: task.OpPending, Principal: system, Tenant: cluster.TenantOf(vm), CreatedAt: timestamppb.New(now),
		Detail: &storev1.Operation_Power{Power: &storev1.Power{
			VmUuid: vm.GetUuid(), VmName: vm.GetName(), Node: node, Generation: vm.GetGeneration(), Action: int32(action),
		}},
	}
}

// idAlphabet is that of operations' ids.
const idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// orderID is the id of what is ordered for one reason, which the words name: it
// is the same whichever leader orders it, so that none orders it again.
func orderID(words ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return "op-" + base32.NewEncoding(idAlphabet).EncodeToString(sum[:])[:26]
}
