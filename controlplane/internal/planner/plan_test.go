package planner

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// world reads a cluster from facts, one a line:
//
//	node ID TOTAL FREE [cordoned] [suspect|unreachable|new] [nolibvirt] [nocapacity] [load=X] [has=UUID]
//	vm NAME NODE MEMORY [uuid=U] [off|paused|conflict] [disk=TYPE:CACHE[:ro]]
//	op ID VM TARGET [ended]
//
// Sizes are in GiB; a VM's UUID is its name where none is given.
func world(t *testing.T, facts string) *cluster.Snapshot {
	t.Helper()
	d := cluster.Empty().Draft()
	for _, line := range strings.Split(strings.TrimSpace(facts), "\n") {
		words := strings.Fields(line)
		switch words[0] {
		case "node":
			addNode(t, d, words[1], words[2], words[3], words[4:])
		case "vm":
			addVM(t, d, words[1], words[2], words[3], words[4:])
		case "op":
			state := task.OpRunning
			if slices.Contains(words, "ended") {
				state = task.OpSucceeded
			} else {
				d.InUse.Put("vm/"+words[2], words[1], 1)
			}
			d.Operations.Put(words[1], &storev1.Operation{
				Id: words[1], Kind: "migrate", State: state,
				Detail: &storev1.Operation_Migrate{Migrate: &storev1.Migrate{VmUuid: words[2], Target: words[3]}},
			}, 1)
		default:
			t.Fatalf("what is %q?", line)
		}
	}
	return d.Snapshot(1)
}

func gib(t *testing.T, s string) uint64 {
	t.Helper()
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(f * (1 << 30))
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func addNode(t *testing.T, d *cluster.Draft, id, total, free string, marks []string) {
	node := &storev1.Node{Id: id}
	status := &storev1.NodeStatus{
		Id: id, Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE,
		Capacity: encode(t, &debvisorv1.NodeCapacity{MemoryBytes: gib(t, total), MemoryAvailableBytes: gib(t, free)}),
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
		case "new":
			status = nil
		case "nolibvirt":
			status.LibvirtDown = true
		case "nocapacity":
			status.Capacity = nil
		case "load":
			load, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			status.Health = encode(t, &debvisorv1.Health{NodeId: &debvisorv1.NodeId{Id: id}, CpuLoad: load})
		case "vms":
			status.Capacity = encode(t, &debvisorv1.NodeCapacity{
				MemoryBytes: gib(t, total), MemoryAvailableBytes: gib(t, free), MemoryVmsBytes: gib(t, value),
			})
		case "has":
			status.Domains = append(status.Domains, value)
		default:
			t.Fatalf("node %s: what is %q?", id, mark)
		}
	}
	d.Nodes.Put(id, node, 1)
	if status != nil {
		d.Statuses.Put(id, status, 1)
	}
}

func addVM(t *testing.T, d *cluster.Draft, name, node, memory string, marks []string) {
	vm := &storev1.VM{Uuid: name, Name: name, Node: node}
	domain := &agentv1.Domain{Name: name, State: debvisorv1.VMState_VM_STATE_RUNNING, MemoryBytes: gib(t, memory)}
	for _, mark := range marks {
		key, value, _ := strings.Cut(mark, "=")
		switch key {
		case "uuid":
			vm.Uuid = value
		case "off":
			domain.State = debvisorv1.VMState_VM_STATE_SHUTOFF
		case "paused":
			domain.State = debvisorv1.VMState_VM_STATE_PAUSED
		case "conflict":
			vm.ConflictNodes = []string{"a", "b"}
		case "disk":
			parts := strings.Split(value, ":")
			domain.Disks = append(domain.Disks, &debvisorv1.VMDisk{
				Target: fmt.Sprintf("vd%c", 'a'+len(domain.GetDisks())), Type: parts[0], Source: "/x", Cache: parts[1], ReadOnly: len(parts) > 2,
			})
		default:
			t.Fatalf("vm %s: what is %q?", name, mark)
		}
	}
	domain.Uuid = vm.GetUuid()
	vm.Domain = encode(t, domain)
	d.VMs.Put(vm.GetUuid(), vm, 1)
}

// verdict writes a plan in one line: "a→b" where it is allowed, else "no", then
// the codes against the VM, then those against each node, in order of the name.
func verdict(r Result) string {
	out := "no"
	if r.Allowed {
		out = r.Source + "→" + r.Target
	}
	for _, reason := range r.Reasons {
		out += " " + reason.Code
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

func TestPlan(t *testing.T) {
	const two = "node a 16 8\nnode b 16 8\n"
	for name, c := range map[string]struct {
		facts, ask, want string // ask: VM [>target] [<source] [by=operation]
	}{
		"goes":                {two + "vm w a 2", "w >b", "a→b a:ALREADY_THERE"},
		"chosen":              {two + "vm w a 2", "w", "a→b a:ALREADY_THERE"},
		"paused goes":         {two + "vm w a 2 paused", "w", "a→b a:ALREADY_THERE"},
		"most memory":         {two + "node c 16 12\nvm w a 2", "w", "a→c a:ALREADY_THERE"},
		"share, not size":     {two + "node c 64 16\nvm w a 2", "w", "a→b a:ALREADY_THERE"},
		"idle CPUs":           {"node a 16 8\nnode b 16 8 load=0.9\nnode c 16 8 load=0.1\nvm w a 2", "w", "a→c a:ALREADY_THERE"},
		"same score: by name": {two + "node c 16 8\nvm w a 2", "w", "a→b a:ALREADY_THERE"},
		"already there":       {two + "vm w a 2", "w >a", "no a:ALREADY_THERE"},
		"wrong source":        {two + "vm w a 2", "w >b <b", "no WRONG_SOURCE a:ALREADY_THERE"},
		"right source":        {two + "vm w a 2", "w >b <a", "a→b a:ALREADY_THERE"},
		"no such VM":          {two, "w", "no VM_NOT_FOUND"},
		"no such node":        {two + "vm w a 2", "w >z", "no a:ALREADY_THERE z:NODE_NOT_FOUND"},
		"no other node":       {"node a 16 8\nvm w a 2", "w", "no a:ALREADY_THERE"},
		"cordoned":            {"node a 16 8\nnode b 16 8 cordoned\nvm w a 2", "w", "no a:ALREADY_THERE b:NODE_CORDONED"},
		"from cordoned":       {"node a 16 8 cordoned\nnode b 16 8\nvm w a 2", "w", "a→b a:ALREADY_THERE a:NODE_CORDONED"},
		"suspect":             {"node a 16 8\nnode b 16 8 suspect\nvm w a 2", "w", "no a:ALREADY_THERE b:NODE_NOT_REACHABLE"},
		"unreachable":         {"node a 16 8\nnode b 16 8 unreachable\nvm w a 2", "w", "no a:ALREADY_THERE b:NODE_NOT_REACHABLE"},
		"never heard":         {"node a 16 8\nnode b 16 8 new\nvm w a 2", "w", "no a:ALREADY_THERE b:NODE_NOT_REACHABLE b:CAPACITY_UNKNOWN"},
		"libvirt down":        {"node a 16 8\nnode b 16 8 nolibvirt\nvm w a 2", "w", "no a:ALREADY_THERE b:NODE_LIBVIRT_DOWN"},
		"capacity unknown":    {"node a 16 8\nnode b 16 8 nocapacity\nvm w a 2", "w", "no a:ALREADY_THERE b:CAPACITY_UNKNOWN"},
		"source not heard": {
			"node a 16 8 unreachable nolibvirt\nnode b 16 8\nvm w a 2", "w",
			"no SOURCE_NOT_REACHABLE SOURCE_LIBVIRT_DOWN a:ALREADY_THERE a:NODE_NOT_REACHABLE a:NODE_LIBVIRT_DOWN",
		},
		"memory to the byte": {"node a 16 8\nnode b 16 2.25\nvm w a 2", "w", "a→b a:ALREADY_THERE"},
		"memory":             {"node a 16 8\nnode b 16 2.2\nvm w a 2", "w", "no a:ALREADY_THERE b:MEMORY"},
		"overhead grows":     {"node a 64 8\nnode b 64 32.9\nvm w a 32", "w", "no a:ALREADY_THERE b:MEMORY"},
		"VMs may use more":   {"node a 16 8\nnode b 16 12 vms=14\nvm w a 2", "w", "no a:ALREADY_THERE b:MEMORY"},
		"placed since":       {"node a 16 8\nnode b 16 12\nvm w a 2\nvm x b 8\nvm y b 6\nvm z b 9 off", "w", "no a:ALREADY_THERE b:MEMORY"},
		"promised":           {"node a 16 8\nnode b 16 4\nvm w a 2\nvm x a 2\nop o x b", "w", "no a:ALREADY_THERE b:MEMORY"},
		"promise kept":       {"node a 16 8\nnode b 16 4\nvm w a 2\nvm x b 2\nop o x b", "w", "a→b a:ALREADY_THERE"},
		"promise ended":      {"node a 16 8\nnode b 16 4\nvm w a 2\nvm x a 2\nop o x b ended", "w", "a→b a:ALREADY_THERE"},
		"promise elsewhere":  {two + "node c 16 4\nvm w a 2\nvm x a 2\nop o x b", "w >c", "a→c a:ALREADY_THERE"},
		"promise spreads":    {two + "node c 16 8\nvm w a 2\nvm x a 2\nop o x b", "w", "a→c a:ALREADY_THERE"},
		"in use":             {two + "vm w a 2\nop o w b", "w >b", "no VM_IN_USE a:ALREADY_THERE"},
		"in use by itself":   {"node a 16 8\nnode b 16 2.5\nvm w a 2\nop o w b", "w >b by=o", "a→b a:ALREADY_THERE"},
		"conflict":           {two + "vm w a 2 conflict", "w", "no VM_CONFLICT a:ALREADY_THERE"},
		"not running":        {two + "vm w a 2 off", "w", "no VM_NOT_RUNNING a:ALREADY_THERE"},
		"name clash":         {two + "vm w a 2 uuid=1\nvm w b 1 uuid=2", "1", "no a:ALREADY_THERE b:NAME_CLASH"},
		"UUID clash":         {"node a 16 8\nnode b 16 8 has=w\nvm w a 2", "w", "no a:ALREADY_THERE b:UUID_CLASH"},
		"cache none":         {two + "vm w a 2 disk=file:none disk=block:directsync", "w", "a→b a:ALREADY_THERE"},
		"cache default":      {two + "vm w a 2 disk=file:", "w", "no DISK_CACHE_UNSAFE a:ALREADY_THERE"},
		"cache writeback":    {two + "vm w a 2 disk=file:none disk=file:writeback", "w", "no DISK_CACHE_UNSAFE a:ALREADY_THERE"},
		"cache of a CD":      {two + "vm w a 2 disk=file::ro", "w", "a→b a:ALREADY_THERE"},
		"cache of RBD":       {two + "vm w a 2 disk=network:writeback", "w", "a→b a:ALREADY_THERE"},
		"all at once": {
			"node a 16 8\nnode b 16 1 cordoned nolibvirt suspect has=w\nnode c 16 8\nvm w a 2 off disk=file:\nvm w b 1 uuid=2", "w >b <c",
			"no WRONG_SOURCE VM_NOT_RUNNING DISK_CACHE_UNSAFE a:ALREADY_THERE " +
				"b:NODE_NOT_REACHABLE b:NODE_LIBVIRT_DOWN b:NODE_CORDONED b:NAME_CLASH b:UUID_CLASH b:MEMORY",
		},
	} {
		t.Run(name, func(t *testing.T) {
			words := strings.Fields(c.ask)
			r := Request{VM: words[0]}
			for _, w := range words[1:] {
				switch w[0] {
				case '>':
					r.Target = w[1:]
				case '<':
					r.Source = w[1:]
				default:
					r.Operation = strings.TrimPrefix(w, "by=")
				}
			}
			result := Plan(world(t, c.facts), r)
			if got := verdict(result); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if !result.Allowed && result.Refusal() == "" {
				t.Error("refused without a word")
			}
		})
	}
}

func TestRefusalHasTheFigures(t *testing.T) {
	result := Plan(world(t, "node a 16 8\nnode b 16 2\nnode c 16 8 cordoned\nvm w a 2\nvm x a 1\nop o x b"), Request{VM: "w"})
	text := result.Refusal()
	for _, want := range []string{"2.2 GiB", "2.0 GiB and 256 MiB overhead", "1.2 GiB is promised", "disk swap", "b: ", "c: "} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
	result = Plan(world(t, "node a 16 8\nnode b 16 2\nnode c 16 8 cordoned\nvm w a 2"), Request{VM: "w", Target: "c"})
	if text := result.Refusal(); strings.Contains(text, "b: ") || !strings.Contains(text, "c: it is cordoned") {
		t.Errorf("asked for c only: %q", text)
	}
	if !result.Has(NodeCordoned) || result.Has(Memory) {
		t.Error("Has looks at other nodes")
	}
}

func TestOnly(t *testing.T) {
	const facts = "node a 16 8\nnode b 16 8 has=w\nnode c 16 8 has=w cordoned\nvm w a 2"
	for target, want := range map[string]bool{"": true, "b": true, "c": false, "a": false, "z": false} {
		result := Plan(world(t, facts), Request{VM: "w", Target: target})
		if got := result.Only(UUIDClash); got != want {
			t.Errorf("to %q: %v, want %v", target, got, want)
		}
	}
	result := Plan(world(t, facts), Request{VM: "w", Target: "b", Source: "c"})
	if result.Only(UUIDClash) {
		t.Error("the VM's own reasons are not looked at")
	}
}
