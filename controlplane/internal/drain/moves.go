package drain

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// moveKind is the kind of the operations that the moves are.
	moveKind = "migrate"
	// maxTries bounds how often a move is begun that fails each time.
	maxTries = 3
	// retryPause is how long after the end of a failed move it is tried again,
	// times the tries so far.
	retryPause = 5 * time.Second
	// defaultParallel is how many migrations may leave a node at once, and as
	// many arrive, where the node says nothing else.
	defaultParallel = 2
)

// settle brings the moves up to date with their operations.
func (d *drain) settle() {
	for _, m := range d.e.GetMoves() {
		if m.GetState() != moving {
			continue
		}
		child, ok := d.snapshot.Operations[m.GetOperation()]
		switch {
		case !ok:
			d.lost(m)
		case task.OpEnded(child.Value.GetState()):
			d.settleOne(m, child.Value)
		default:
			continue
		}
		d.ended = true
	}
}

// lost is a move whose operation is no longer in the records: where the VM is
// tells what came of it.
func (d *drain) lost(m *storev1.Move) {
	m.State, m.Message = waiting, "its operation is no longer in the records; it is tried again"
	if d.snapshot.VMs[m.GetVmUuid()].Value.GetNode() == m.GetTarget() {
		m.State, m.Message = moved, ""
	}
}

// settleOne notes the end of a move's operation.
func (d *drain) settleOne(m *storev1.Move, child *storev1.Operation) {
	m.Target = cmp.Or(child.GetMigrate().GetTarget(), m.GetTarget())
	m.Message = cmp.Or(child.GetErrorMessage(), "its operation ended "+strings.ToLower(child.GetErrorCode()))
	switch {
	case child.GetState() == task.OpSucceeded:
		m.State, m.Message = moved, ""
	case d.snapshot.VMs[m.GetVmUuid()].Value.GetNode() == m.GetTarget():
		// It failed after the VM had left, and says in what way.
		m.State = moved
	case d.unbegun(child) && !d.heard(m.GetTarget()) && m.GetTries() < maxTries:
		m.State, m.Message = waiting, m.GetTarget()+" was not heard any more before it began"
	case child.GetState() == task.OpCancelled, lasting(child.GetErrorCode()):
		m.State = failed
	case m.GetTries() >= maxTries:
		m.State, m.Message = failed, fmt.Sprintf("%s (tried %d times)", m.GetMessage(), m.GetTries())
	default:
		m.State, m.Message = waiting, fmt.Sprintf("try %d of %d failed: %s", m.GetTries(), maxTries, m.GetMessage())
	}
}

// stranded is a move that waits to begin for a node that is not heard, and has
// for long enough: others may take the VM. One that has begun is left alone,
// since what came of it only that node can say.
func (d *drain) stranded() *storev1.Move {
	for _, m := range d.e.GetMoves() {
		child := d.snapshot.Operations[m.GetOperation()].Value
		if m.GetState() == moving && child.GetState() == task.OpPending && !child.GetCancelRequested() && !d.heard(m.GetTarget()) &&
			m.GetTries() < maxTries && d.now.Sub(child.GetCreatedAt().AsTime()) >= grace {
			return m
		}
	}
	return nil
}

// unbegun tells whether a move was given up before it began, and not as the
// whole was.
func (d *drain) unbegun(child *storev1.Operation) bool {
	return child.GetState() == task.OpCancelled && child.GetMigrate().GetAttempt() == 0 && !d.op.GetCancelRequested() &&
		d.op.GetKind() == Evacuate && !d.given()
}

// heard tells whether a node's agent is.
func (d *drain) heard(node string) bool {
	return d.snapshot.Statuses[node].Value.GetLiveness() == storev1.NodeLiveness_NODE_LIVENESS_ONLINE
}

// lasting tells whether a failed move says that something has to be done before
// another try makes sense.
func lasting(code string) bool {
	return slices.Contains([]string{"SOURCE_NOT_GONE", "COPY_UNCLEAR", "NODE_OFF", "BROKEN_RECORD", "INTERNAL"}, code)
}

// takeIn brings the moves of an evacuation up to date with the VMs that are on
// the node: those that came, and those that left by other means.
func (d *drain) takeIn() {
	node := d.e.GetNode()
	known := map[string]*storev1.Move{}
	for _, m := range d.e.GetMoves() {
		known[m.GetVmUuid()] = m
	}
	for _, entry := range d.snapshot.VMsOn(node) {
		vm := entry.Value
		m, ok := known[vm.GetUuid()]
		switch {
		case !ok:
			m = &storev1.Move{VmUuid: vm.GetUuid(), VmName: vm.GetName(), Source: node, State: waiting}
			d.e.Moves = append(d.e.Moves, m)
		case m.GetState() == moved:
			m.State, m.Source, m.Target, m.Message = waiting, node, "", ""
		default:
			continue
		}
		d.ended = true
	}
	for _, m := range d.e.GetMoves() {
		if m.GetState() == moving || m.GetState() == moved {
			continue
		}
		if vm := d.snapshot.VMs[m.GetVmUuid()].Value; vm.GetNode() != node {
			d.left(m, vm)
		}
	}
}

// left notes that a VM is elsewhere though no move of this operation took it
// there.
func (d *drain) left(m *storev1.Move, vm *storev1.VM) {
	m.State, m.Message = moved, "it is not defined on any node any more"
	if vm == nil {
		m.Target, m.Operation = "", ""
	} else if at := vm.GetNode(); at != m.GetTarget() || m.GetOperation() == "" {
		m.Message = "it is on " + at + " now, by other means than this operation"
		m.Target, m.Operation = at, ""
	} else {
		m.Message = ""
	}
	d.ended = true
}

// traffic counts migrations by the node that they leave or arrive on.
type traffic struct{ leaving, arriving map[string]int }

func newTraffic() traffic {
	return traffic{leaving: map[string]int{}, arriving: map[string]int{}}
}

func (t traffic) add(source, target string) {
	t.leaving[source]++
	t.arriving[target]++
}

// count counts the unfinished migrations. What somebody else asked for and has
// not begun has no place yet: it may wait for a node for as long as that takes,
// and whose turn it is at last is the migrations' own to say.
func (d *drain) count() {
	d.all, d.own = newTraffic(), newTraffic()
	for _, entry := range d.snapshot.ActiveOperations() {
		m := entry.Value.GetMigrate()
		if m == nil || entry.Value.GetState() == task.OpPending && entry.Value.GetParent() == "" {
			continue
		}
		d.all.add(m.GetSource(), m.GetTarget())
		if entry.Value.GetParent() == d.op.GetId() {
			d.own.add(m.GetSource(), m.GetTarget())
		}
	}
}

// mayLeave tells whether one more of this operation's moves may leave a node:
// the node's limit counts all migrations, the request's its own.
func (d *drain) mayLeave(node string) bool {
	return d.all.leaving[node] < d.limit(node) && (d.e.GetParallel() == 0 || d.own.leaving[node] < int(d.e.GetParallel()))
}

// mayArrive is mayLeave for the other direction.
func (d *drain) mayArrive(node string) bool {
	return d.all.arriving[node] < d.limit(node) && (d.e.GetParallel() == 0 || d.own.arriving[node] < int(d.e.GetParallel()))
}

// limit is how many migrations may leave a node at once, and as many arrive.
func (d *drain) limit(node string) int {
	return int(cmp.Or(d.snapshot.Nodes[node].Value.GetParallelMigrations(), defaultParallel))
}

// resting tells whether a move that failed is not yet to be tried again.
func (d *drain) resting(m *storev1.Move) bool {
	child, ok := d.snapshot.Operations[m.GetOperation()]
	if m.GetState() != waiting || !ok || m.GetTries() == 0 || m.GetMessage() == "" {
		return false
	}
	return d.now.Before(child.Value.GetEndedAt().AsTime().Add(time.Duration(m.GetTries()) * retryPause))
}

// start makes a move's own operation, which the step writes together with the
// parent's record.
func (d *drain) start(m *storev1.Move, target string) {
	m.Tries++
	m.State, m.Target, m.Message = moving, target, ""
	m.Operation = childID(d.op.GetId(), m.GetVmUuid(), m.GetTries())
	resource := "vm/" + m.GetVmUuid()
	child := &storev1.Operation{
		Id: m.GetOperation(), Kind: moveKind, State: task.OpPending, Resources: []string{resource}, Parent: d.op.GetId(),
		Tenant:    cluster.TenantOf(d.snapshot.VMs[m.GetVmUuid()].Value),
		Principal: d.op.GetPrincipal(), Method: d.op.GetMethod(), TraceId: d.op.GetTraceId(), CreatedAt: timestamppb.New(d.now),
		Traceparent: obs.Below(d.op.GetTraceparent(), d.op.GetId()),
		Detail: &storev1.Operation_Migrate{Migrate: &storev1.Migrate{
			VmUuid: m.GetVmUuid(), VmName: m.GetVmName(), Source: m.GetSource(), Target: target,
			AllowDowntime: d.e.GetAllowDowntime(), PlanId: d.e.GetPlanId(),
		}},
	}
	d.extra.Require = append(d.extra.Require, store.Absent(store.OperationKey(child.GetId())), store.Absent(store.InUseKey(resource)))
	d.extra.Puts = append(d.extra.Puts,
		store.PutProto(store.OperationKey(child.GetId()), child), store.PutString(store.InUseKey(resource), child.GetId()))
	d.begun = append(d.begun, child)
	d.all.add(m.GetSource(), target)
	d.own.add(m.GetSource(), target)
	d.log = fmt.Sprintf("moving %s from %s to %s", name(m), m.GetSource(), target)
	if n := len(d.begun); n > 1 {
		d.log = fmt.Sprintf("moving %d VMs from %s", n, m.GetSource())
	}
}

// idAlphabet is that of all operations' ids.
const idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// childID is the id of a move's operation: the same whoever makes it.
func childID(parent, vm string, try uint32) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%d", parent, vm, try))
	return "op-" + base32.NewEncoding(idAlphabet).EncodeToString(sum[:])[:26]
}
