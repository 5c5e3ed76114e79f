package api_test

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// objects are one owner's things. All of its words begin with its secret, so
// that they are found wherever they come up.
type objects struct {
	tenant string
	exist  bool
	secret string
	// vm is in use by operation, which is at work; plan would move it.
	vm, operation, plan string
	// idle is another VM, which nothing holds.
	idle string
	// pool has the datasets d/x and d/y on a; job keeps d/x alike on b.
	pool, job string
	// more are other ids.
	more []string
}

func newObjects(t *testing.T, tenant string, exist bool) *objects {
	t.Helper()
	o := &objects{exist: exist, secret: word(t), operation: operationID(t), plan: planID(t)}
	o.vm, o.idle = uuid.NewString(), uuid.NewString()
	if tenant != "" {
		o.tenant = tenant + "-" + o.secret
	}
	o.pool, o.job = "pool-"+o.secret, "job-"+o.secret
	return o
}

// secrets are what nobody else may read.
func (o *objects) secrets() []string {
	return append([]string{o.secret, o.vm, o.idle, o.operation, o.plan}, o.more...)
}

// disguise takes the words of an owner out of a text.
func (o *objects) disguise(text string) string {
	for _, word := range o.secrets() {
		text = strings.ReplaceAll(text, word, "…")
	}
	return text
}

func word(t testing.TB) string {
	t.Helper()
	b := make([]byte, 6)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return "q" + hex.EncodeToString(b)
}

func operationID(t testing.TB) string { return "op-" + word(t) + word(t) }
func planID(t testing.TB) string      { return "plan-" + word(t) + word(t) }

// world is a cluster of two tenants' VMs and of nobody's, with operations at
// work on them and plans.
type world struct {
	*replica
	of     map[string]*objects
	pools  []string // of Ceph
	tangle tangle
}

func startWorld(t *testing.T) *world {
	t.Helper()
	w := &world{replica: start(t, 0), of: map[string]*objects{}}
	w.lead()
	w.computePlans()
	for _, id := range []string{"a", "b", "spare"} {
		w.node(id, nil)
	}
	for _, kind := range []string{"acme", "globex", "nobody", "none"} {
		tenant := kind
		if kind == "nobody" || kind == "none" {
			tenant = ""
		}
		w.of[kind] = newObjects(t, tenant, kind != "none")
		if kind != "none" {
			w.seed(w.of[kind])
		}
	}
	w.zfs.dataset("b", &agentv1.ZfsDataset{Name: "tank"})
	w.reportZFS("a", "b")
	// An operator empties a.
	evacuation := operationID(t)
	w.put(
		store.PutProto(store.OperationKey(evacuation), &storev1.Operation{
			Id: evacuation, Kind: "evacuate", State: task.OpRunning, Resources: []string{"evacuation/a"}, Principal: "operator",
			CreatedAt: timestamppb.Now(), Detail: &storev1.Operation_Evacuate{Evacuate: w.evacuation()},
		}),
		store.PutString(store.InUseKey("evacuation/a"), evacuation),
	)
	return w
}

// seed puts an owner's things in the records.
func (w *world) seed(o *objects) {
	w.t.Helper()
	if o.tenant != "" {
		w.put(store.PutJSON(store.TenantKey(o.tenant), &storev1.Tenant{
			Description: "of " + o.secret, Storage: []*storev1.TenantStorage{{Backend: "zfs", Pool: o.pool, Name: "d"}, {Backend: "rbd", Pool: o.pool, Name: "d"}},
		}))
	}
	w.zfs.image(o.pool+"/d/x", func(i *agentv1.RbdImage) { i.Operation = "op-of-x" }, "s1", "s2")
	w.zfs.image(o.pool+"/d/y", nil, "s1")
	w.pools = append(w.pools, o.pool)
	w.reportCeph(fsid, w.pools, "a", "b")
	for i, name := range []string{"/d/x", "/d/y"} {
		w.zfs.dataset("a", &agentv1.ZfsDataset{Name: o.pool + name, Guid: uint64(7 + i)}, "s1", "s2")
	}
	w.own(o, o.vm, "db", nil)
	w.own(o, o.idle, "vm-"+o.secret, func(d *agentv1.Domain, _ *storev1.VM) { d.HostDevices = []string{"pci-" + o.secret} })
	w.put(
		store.PutProto(store.OperationKey(o.operation), w.move(o)),
		store.PutString(store.InUseKey("vm/"+o.vm), o.operation),
		store.PutString(store.InUseKey("zfs/a/"+o.pool+"/d/x"), o.operation), store.PutString(store.InUseKey("rbd/"+fsid+"/"+o.pool+"/d/x"), o.operation),
		store.PutString(store.InUseKey("rbd-flatten/"+fsid+"/"+o.pool+"/d/x"), o.operation),
		store.PutString(store.InUseKey("replication/"+o.job), o.operation),
		store.PutProto(store.ReplicationKey(o.job), &storev1.ReplicationJob{
			Id: o.job, Source: "a", Target: "b", Dataset: o.pool + "/d/x", TargetDataset: o.pool + "/d/x", Tenant: o.tenant, CreatedAt: timestamppb.Now(),
			LastErrorCode: "ZFS_ERROR", LastError: "of " + o.secret, CursorName: "s1", CursorGuid: 99,
		}),
		store.PutProto(store.LostCopyKey(o.vm, "lost"), &storev1.LostCopy{
			VmUuid: o.vm, VmName: "db", Node: "lost", BroughtBackOn: "a", Operation: o.operation, At: timestamppb.Now(), Tenant: o.tenant,
			State: storev1.LostCopyState_LOST_COPY_STATE_AWAITED, LastError: "of " + o.secret, Proof: []string{"the word of " + o.secret},
		}),
		store.PutProto(store.PlanKey(o.plan), &storev1.Plan{
			Id: o.plan, State: storev1.PlanState_PLAN_STATE_READY, Kind: "migrate", Principal: "svc-" + o.secret, Tenant: o.tenant,
			CreatedAt: timestamppb.Now(), ExpiresAt: timestamppb.New(time.Now().Add(10 * time.Minute)),
			Request: encode(w.t, &debvisorv1.VMMigratePlan{Vm: &debvisorv1.VMRef{VmId: o.vm}}),
			Result: encode(w.t, &debvisorv1.Plan{Migration: &debvisorv1.MigrationPlanResult{
				Allowed: true, Vm: &debvisorv1.VMRef{VmId: o.vm}, VmName: "db", Source: nodeRef("a"), Target: nodeRef("b"), Message: "of " + o.secret,
			}}),
		}),
	)
}

// own adds a running VM of 1 GiB on a.
func (w *world) own(o *objects, id, name string, change func(*agentv1.Domain, *storev1.VM)) {
	w.t.Helper()
	domain := &agentv1.Domain{
		Uuid: id, Name: name, State: debvisorv1.VMState_VM_STATE_RUNNING, MemoryBytes: gib, Persistent: true,
		Disks: []*debvisorv1.VMDisk{{
			Target: "vda", Type: "file", Source: "/shared/" + o.secret, Cache: "none", Shared: true, StorageId: "nfs4:server:/vms", BackingFile: "/base/" + o.secret,
		}},
		Interfaces: []*debvisorv1.VMInterface{{Type: "user", Mac: "mac-" + o.secret}},
	}
	vm := &storev1.VM{Uuid: id, Name: name, Node: "a", Generation: 1, Policy: encode(w.t, &debvisorv1.VMPolicy{
		Tenant: o.tenant, AffinityGroups: []string{"with-" + o.secret}, AntiAffinity: []*debvisorv1.AntiAffinity{{Group: "from-" + o.secret}},
	})}
	if change != nil {
		change(domain, vm)
	}
	vm.Domain = encode(w.t, domain)
	w.put(store.PutProto(store.VMKey(id), vm))
}

// move is an owner's migration, too late to be cancelled.
func (w *world) move(o *objects) *storev1.Operation {
	return &storev1.Operation{
		Id: o.operation, Kind: "migrate", State: task.OpRunning, Resources: []string{"vm/" + o.vm}, Tenant: o.tenant,
		Principal: "svc-" + o.secret, CreatedAt: timestamppb.Now(), Step: "copying " + o.secret, TraceId: "trace-" + o.secret,
		Detail: &storev1.Operation_Migrate{Migrate: &storev1.Migrate{
			VmUuid: o.vm, VmName: "db", Source: "a", Target: "b", SwitchedOver: true, PlanId: o.plan,
		}},
	}
}

// evacuation moves everybody's VMs.
func (w *world) evacuation() *storev1.Evacuate {
	e := &storev1.Evacuate{Node: "a"}
	for _, o := range w.of {
		if o.exist {
			e.Moves = append(e.Moves, &storev1.Move{
				VmUuid: o.vm, VmName: "db", Source: "a", Target: "b", State: storev1.MoveState_MOVE_STATE_MOVING, Operation: o.operation,
			}, &storev1.Move{
				VmUuid: o.idle, VmName: "vm-" + o.secret, Source: "a", State: storev1.MoveState_MOVE_STATE_BLOCKED, Message: fmt.Sprint("of ", o.secret),
			})
		}
	}
	return e
}
