package planner

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// comparisons are Facts for tests: "yes", or what is missing, by "guest/host".
type comparisons map[string]string

func (c comparisons) CompareCPU(q Question) (compatible bool, detail string, known bool) {
	detail, known = c[q.Guest+"/"+q.Host]
	return detail == "yes", detail, known
}

// read makes a cluster of facts, one a line:
//
//	node ID TOTAL FREE [marks]      see addNode
//	vm NAME NODE MEMORY [marks]     see addVM
//	op ID VM TARGET|start [ended] [ran] [from=NODE] [mib=N] [ms=N] [limited] [offline]
//	cpu GUEST HOST yes|WHAT-IS-MISSING
//
// Sizes are in GiB; a VM's UUID is its name where none is given. All nodes see
// the storage nfs at /shared.
func read(t testing.TB, facts string) (*cluster.Snapshot, comparisons) {
	t.Helper()
	d, known := cluster.Empty().Draft(), comparisons{}
	for _, line := range strings.Split(strings.TrimSpace(facts), "\n") {
		words := strings.Fields(line)
		switch words[0] {
		case "node":
			addNode(t, d, words[1], words[2], words[3], words[4:])
		case "vm":
			addVM(t, d, words[1], words[2], words[3], words[4:])
		case "op":
			addOp(t, d, words[1], words[2], words[3], words[4:])
		case "cpu":
			known[words[1]+"/"+words[2]] = words[3]
		default:
			t.Fatalf("what is %q?", line)
		}
	}
	return d.Snapshot(1), known
}

func snapshot(t testing.TB, facts string) *cluster.Snapshot {
	t.Helper()
	s, _ := read(t, facts)
	return s
}

func number(t testing.TB, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func gib(t testing.TB, s string) uint64 {
	t.Helper()
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(f * (1 << 30))
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// addNode takes the marks cordoned, suspect, unreachable, new, nolibvirt,
// nocapacity, load=X, vms=SIZE, has=UUID, rack=R, zone=Z, cpus=N, arch=A,
// machine=M, virt=V, qemu=V, net=N, if=I, cpu=HASH, link=MiB, limit=MiB,
// parallel=N, fs=MOUNT:STORAGE:SIZE, and of ZFS pool=NAME:SIZE and
// has=POOL/PATH[:enc] for a dataset, and of Ceph ceph=CLUSTER:POOL[:POOL|:dead …].
func addNode(t testing.TB, d *cluster.Draft, id, total, free string, marks []string) {
	node := &storev1.Node{Id: id}
	status := &storev1.NodeStatus{Id: id, Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE}
	caps := &debvisorv1.NodeCapabilities{Arch: "x86_64"}
	capacity := &debvisorv1.NodeCapacity{
		MemoryBytes: gib(t, total), MemoryAvailableBytes: gib(t, free),
		FileSystems: []*debvisorv1.FileSystem{{MountPoint: "/shared", StorageId: "nfs", Shared: true}, {MountPoint: "/", StorageId: "local:" + id}},
	}
	for _, mark := range marks {
		key, value, _ := strings.Cut(mark, "=")
		switch key {
		case "cordoned":
			node.Cordoned, node.CordonReason = true, "disk swap"
		case "suspect":
			status.Liveness = storev1.NodeLiveness_NODE_LIVENESS_SUSPECT
		case "unreachable":
			status.Liveness = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
		case "new", "nocapacity":
		case "nolibvirt":
			status.LibvirtDown = true
		case "load":
			load, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			status.Health = encode(t, &debvisorv1.Health{NodeId: &debvisorv1.NodeId{Id: id}, CpuLoad: load})
		case "vms":
			capacity.MemoryVmsBytes = gib(t, value)
		case "pool", "has":
			if key == "has" && !strings.Contains(value, "/") {
				status.Domains = append(status.Domains, value)
				break
			}
			addZFS(t, d, id, value, key == "pool")
		case "ceph":
			fsid, pools, _ := strings.Cut(value, ":")
			inv := &agentv1.CephInventory{Fsid: cephOf(fsid)}
			for pool := range strings.SplitSeq(pools, ":") {
				if pool == "dead" {
					inv.Error = "it does not answer"
					continue
				}
				inv.Pools = append(inv.Pools, &agentv1.CephPool{Name: pool})
			}
			d.Ceph.Put(id, &storev1.NodeCeph{Node: id, Inventory: encode(t, inv)}, 1)
		case "rack":
			node.Rack = value
		case "zone":
			node.Zone = value
		case "limit":
			node.MigrationBandwidthMib = number(t, value)
		case "parallel":
			node.ParallelMigrations = uint32(number(t, value))
		case "cpus":
			capacity.Cpus = uint32(number(t, value))
		case "fs":
			f := strings.Split(value, ":")
			capacity.FileSystems = append(capacity.FileSystems, &debvisorv1.FileSystem{
				MountPoint: f[0], StorageId: f[1], Shared: f[1] == "nfs", AvailableBytes: gib(t, f[2]), TotalBytes: gib(t, f[2]),
			})
		default:
			capability(t, caps, key, value)
		}
	}
	d.Nodes.Put(id, node, 1)
	if status.Capabilities = encode(t, caps); !slices.Contains(marks, "nocapacity") {
		status.Capacity = encode(t, capacity)
	}
	if !slices.Contains(marks, "new") {
		d.Statuses.Put(id, status, 1)
	}
}

func capability(t testing.TB, caps *debvisorv1.NodeCapabilities, key, value string) {
	switch key {
	case "arch":
		caps.Arch = value
	case "machine":
		caps.MachineTypes = append(caps.MachineTypes, value)
	case "virt":
		caps.VirtTypes = append(caps.VirtTypes, value)
	case "qemu":
		caps.QemuVersion = value
	case "net":
		caps.Networks = append(caps.Networks, value)
	case "if":
		caps.HostInterfaces = append(caps.HostInterfaces, value)
	case "cpu":
		caps.CpuHash = value
	case "link":
		caps.LinkBytesPerSecond = number(t, value) << 20
	default:
		t.Fatalf("node: what is %q?", key)
	}
}

// addVM takes the marks uuid=U, off, paused, crashed, incoming, lost, conflict,
// transient, vcpus=N, cpu=HASH, arch=A, machine=M, virt=V, nic=TYPE:SOURCE,
// dev=D, dir=D, snapshots=N, dirty=MiB, writes=KiB, tenant=T, anti=GROUP[:rack|:zone],
// with=GROUP, prio=N, maypause, disk=TYPE:CACHE[:ro] (shared, at /shared) and
// copy=FORMAT:SIZE[:ro|block|shareable|overlay|/PATH|@STORAGE …] (local, at
// /vm-NAME unless said otherwise; with @ on that shared storage), and
// rbd=CLUSTER:POOL/IMAGE and zvol=POOL/PATH:SIZE:REFERENCED[:thick|:enc|:ro|:CACHE …], which is on the node too.
func addVM(t testing.TB, d *cluster.Draft, name, node, memory string, marks []string) {
	vm := &storev1.VM{Uuid: name, Name: name, Node: node}
	domain := &agentv1.Domain{Name: name, State: debvisorv1.VMState_VM_STATE_RUNNING, MemoryBytes: gib(t, memory), Persistent: true}
	policy := &debvisorv1.VMPolicy{}
	for _, mark := range marks {
		key, value, _ := strings.Cut(mark, "=")
		switch key {
		case "uuid":
			vm.Uuid = value
		case "conflict":
			vm.ConflictNodes = []string{"a", "b"}
		case "tenant":
			policy.Tenant = value
		case "anti":
			group, level, _ := strings.Cut(value, ":")
			policy.AntiAffinity = append(policy.AntiAffinity, &debvisorv1.AntiAffinity{
				Group: group, Level: map[string]debvisorv1.SpreadLevel{"rack": spreadRack, "zone": spreadZone}[level],
			})
		case "with":
			policy.AffinityGroups = append(policy.AffinityGroups, value)
		case "prio":
			policy.Priority = uint32(number(t, value))
		case "maypause":
			policy.MayPause = true
		case "rbd":
			fsid, image, _ := strings.Cut(value, ":")
			pool, _, _ := strings.Cut(image, "/")
			domain.Disks = append(domain.Disks, &debvisorv1.VMDisk{
				Target: fmt.Sprintf("vd%c", 'a'+len(domain.GetDisks())), Type: "network", Source: image, Format: "raw", Shared: true, Device: "disk",
				StorageId: "rbd:" + cephOf(fsid) + "/" + pool,
			})
		case "zvol":
			addVolume(t, d, domain, node, strings.Split(value, ":"))
		default:
			describe(t, domain, key, value)
		}
	}
	domain.Uuid = vm.GetUuid()
	vm.Domain, vm.Policy = encode(t, domain), encode(t, policy)
	d.VMs.Put(vm.GetUuid(), vm, 1)
}

func describe(t testing.TB, domain *agentv1.Domain, key, value string) {
	switch key {
	case "off":
		domain.State = debvisorv1.VMState_VM_STATE_SHUTOFF
	case "paused":
		domain.State = debvisorv1.VMState_VM_STATE_PAUSED
	case "crashed":
		domain.State = debvisorv1.VMState_VM_STATE_CRASHED
	case "incoming":
		domain.State = debvisorv1.VMState_VM_STATE_INCOMING
	case "lost":
		domain.State = debvisorv1.VMState_VM_STATE_UNSPECIFIED
	case "transient":
		domain.Persistent = false
	case "vcpus":
		domain.Vcpus = uint32(number(t, value))
	case "cpu":
		domain.CpuHash = value
	case "arch":
		domain.Arch = value
	case "machine":
		domain.MachineType = value
	case "virt":
		domain.VirtType = value
	case "nic":
		kind, source, _ := strings.Cut(value, ":")
		domain.Interfaces = append(domain.Interfaces, &debvisorv1.VMInterface{Type: kind, Source: source})
	case "dev":
		domain.HostDevices = append(domain.HostDevices, value)
	case "dir":
		domain.SharedDirectories = append(domain.SharedDirectories, value)
	case "snapshots":
		domain.Snapshots = uint32(number(t, value))
	case "dirty":
		domain.DirtyBytesPerSecond = number(t, value) << 20
	case "writes":
		domain.WrittenBytesPerSecond = number(t, value) << 10
	case "disk", "copy":
		domain.Disks = append(domain.Disks, newDisk(t, domain, key, strings.Split(value, ":")))
	default:
		t.Fatalf("vm: what is %q?", key)
	}
}

func newDisk(t testing.TB, domain *agentv1.Domain, key string, words []string) *debvisorv1.VMDisk {
	disk := &debvisorv1.VMDisk{Target: fmt.Sprintf("vd%c", 'a'+len(domain.GetDisks())), Type: "file"}
	if key == "disk" {
		disk.Type, disk.Cache, disk.ReadOnly = words[0], words[1], len(words) > 2
		disk.Source, disk.Shared, disk.StorageId = "/shared/"+domain.GetName()+"-"+disk.GetTarget(), words[0] != "network", "nfs"
		return disk
	}
	disk.Source = "/vm-" + domain.GetName() + "-" + disk.GetTarget()
	disk.Format, disk.CapacityBytes = words[0], gib(t, words[1])
	for _, word := range words[2:] {
		switch {
		case word == "ro":
			disk.ReadOnly = true
		case word == "block":
			disk.Type = "block"
		case word == "shareable":
			disk.Shareable = true
		case word == "overlay":
			disk.BackingFile = "/base"
		case word[0] == '/':
			disk.Source = word
		case word[0] == '@':
			disk.Shared, disk.StorageId, disk.Cache = true, word[1:], "none"
		case strings.HasPrefix(word, "used"):
			disk.AllocatedBytes = gib(t, word[4:])
		default:
			t.Fatalf("disk: what is %q?", word)
		}
	}
	return disk
}

// inventory changes what a node reports of its ZFS.
func inventory(t testing.TB, d *cluster.Draft, node string, change func(*agentv1.ZfsInventory)) {
	t.Helper()
	var inv agentv1.ZfsInventory
	if entry, ok := d.Snapshot(1).ZFS[node]; ok {
		if err := proto.Unmarshal(entry.Value.GetInventory(), &inv); err != nil {
			t.Fatal(err)
		}
	}
	change(&inv)
	d.ZFS.Put(node, &storev1.NodeZFS{Node: node, Inventory: encode(t, &inv)}, 1)
}

func addZFS(t testing.TB, d *cluster.Draft, node, value string, pool bool) {
	t.Helper()
	name, size, _ := strings.Cut(value, ":")
	inventory(t, d, node, func(inv *agentv1.ZfsInventory) {
		set := &agentv1.ZfsDataset{Name: name, Type: agentv1.ZfsType_ZFS_TYPE_FILESYSTEM}
		if pool {
			set.AvailableBytes = gib(t, size)
			inv.Pools = append(inv.Pools, &agentv1.ZfsPool{Name: name, SizeBytes: gib(t, size), FreeBytes: gib(t, size), Health: "ONLINE"})
		} else {
			set.AvailableBytes, set.Encrypted, set.KeyLoaded = 1<<50, size == "enc", size == "enc"
		}
		inv.Datasets = append(inv.Datasets, set)
	})
}

func addVolume(t testing.TB, d *cluster.Draft, domain *agentv1.Domain, node string, words []string) {
	t.Helper()
	disk := &debvisorv1.VMDisk{
		Target: fmt.Sprintf("vd%c", 'a'+len(domain.GetDisks())), Type: "block", Format: "raw", Cache: "none",
		Source: "/dev/zvol/" + words[0], ZfsDataset: words[0], CapacityBytes: gib(t, words[1]),
	}
	set := &agentv1.ZfsDataset{
		Name: words[0], Type: agentv1.ZfsType_ZFS_TYPE_VOLUME, VolumeBytes: gib(t, words[1]), ReferencedBytes: gib(t, words[2]), BlockBytes: 16384,
	}
	for _, word := range words[3:] {
		switch word {
		case "thick":
			set.ReservedBytes = set.GetVolumeBytes()
		case "enc":
			set.Encrypted, set.KeyLoaded = true, true
		case "ro":
			disk.ReadOnly = true
		case "dm":
			disk.Source = "/dev/zd16"
		case "qcow2":
			disk.Format = word
		default:
			disk.Cache = word
		}
	}
	domain.Disks = append(domain.Disks, disk)
	inventory(t, d, node, func(inv *agentv1.ZfsInventory) { inv.Datasets = append(inv.Datasets, set) })
}

func addOp(t testing.TB, d *cluster.Draft, id, vm, target string, marks []string) {
	m := &storev1.Migrate{VmUuid: vm, Target: target, Method: int32(live)}
	op := &storev1.Operation{Id: id, Kind: "migrate", State: task.OpRunning, Detail: &storev1.Operation_Migrate{Migrate: m}}
	for _, mark := range marks {
		key, value, _ := strings.Cut(mark, "=")
		switch key {
		case "ended":
			op.State, op.EndedAt = task.OpSucceeded, timestamppb.New(time.Unix(1_700_000_000, 0))
		case "ran":
			m.WasRunning = true
		case "from":
			m.Source = value
		case "mib":
			m.Bytes = number(t, value) << 20
		case "ms":
			m.DurationMs = number(t, value)
		case "limited":
			m.Options = encode(t, &debvisorv1.MigrateOptions{BandwidthMib: 1})
		case "offline":
			m.Method = int32(offline)
		default:
			t.Fatalf("op: what is %q?", mark)
		}
	}
	if target == "start" {
		op.Kind, op.Detail = "vm.start", &storev1.Operation_Power{Power: &storev1.Power{
			VmUuid: vm, Action: int32(agentv1.PowerAction_POWER_ACTION_START),
		}}
	}
	if op.GetState() == task.OpRunning {
		d.InUse.Put("vm/"+vm, id, 1)
	}
	d.Operations.Put(id, op, 1)
}

// ask plans what a line asks for: VM [>target] [<source] [by=operation]
// [tenant=T] [down] [cpus] [only] [pause].
func ask(t testing.TB, facts, line string) Result {
	t.Helper()
	s, known := read(t, facts)
	words := strings.Fields(line)
	r := Request{VM: words[0]}
	for _, w := range words[1:] {
		switch {
		case w[0] == '>':
			r.Target = w[1:]
		case w[0] == '<':
			r.Source = w[1:]
		case w == "down":
			r.AllowDowntime = true
		case w == "cpus":
			r.Facts = known
		case w == "only":
			r.TargetOnly = true
		case w == "pause":
			r.Options = &debvisorv1.MigrateOptions{OnDeadline: debvisorv1.DeadlineAction_DEADLINE_ACTION_PAUSE}
		case strings.HasPrefix(w, "by="):
			r.Operation = w[3:]
		case strings.HasPrefix(w, "tenant="):
			r.Tenant = w[7:]
		default:
			t.Fatalf("what is %q?", w)
		}
	}
	return Plan(s, r)
}

// verdict writes a plan in one line: "a→b" where it is allowed, with the method
// unless it is live, else "no", then the codes against the VM, then those
// against each node, in order of the name.
func verdict(r Result) string {
	out := "no"
	if r.Allowed {
		out = r.Source + "→" + r.Target
		switch r.Method {
		case liveCopy:
			out += " copy"
		case offline:
			out += " offline"
		}
	}
	for _, reason := range r.Reasons {
		out += " " + reason.Code
		if reason.Code == NotLive {
			var why []string
			for _, cause := range r.NotLive {
				why = append(why, cause.Code)
			}
			out += "(" + strings.Join(why, ",") + ")"
		}
	}
	nodes := slices.Clone(r.Nodes)
	slices.SortFunc(nodes, func(a, b Verdict) int { return strings.Compare(a.Node, b.Node) })
	for _, v := range nodes {
		for _, reason := range v.Reasons {
			out += " " + v.Node + ":" + reason.Code
		}
	}
	return out
}

// cephOf is the fsid of the cluster with that one letter; any other name is of
// monitors.
func cephOf(name string) string {
	if len(name) != 1 {
		return name
	}
	return "00000000-0000-4000-8000-00000000000" + name
}
