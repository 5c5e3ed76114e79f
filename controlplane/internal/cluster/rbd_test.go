package cluster

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestNamesOfImages(t *testing.T) {
	for name, want := range map[string]string{
		"web": "p/web", "ns/web": "p/ns/web", "vm-100-disk-0": "p/vm-100-disk-0", "a b": "p/a b", "x.y:z+1=2~": "p/x.y:z+1=2~",
		"": "", "/web": "", "ns/": "", "a/b/c": "", "..": "", "ns/..": "", "../web": "", "web@s": "", "web%": "", "we\x00b": "", "we\nb": "", "-web": "", " web": "", "ü": "",
		".dv-op-1": "", "ns/.dv-op-1": "", strings.Repeat("x", 256): "",
	} {
		id, err := RBDImage("image", "p", name)
		if want != "" && (err != nil || RBDPath(id) != want) || want == "" && (!errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), "image.name")) {
			t.Errorf("%q: %v, %v", name, id, err)
		}
	}
	for _, pool := range []string{"", "a/b", "a@b", "..", "-p"} {
		if _, err := RBDImage("image", pool, "web"); !errdefs.Is(err, errdefs.InvalidArgument) || !strings.Contains(err.Error(), "image.pool") {
			t.Errorf("pool %q: %v", pool, err)
		}
	}
}

// An image of the default namespace and a namespace of its name are never one resource.
func TestResourcesOfImages(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range []string{"a", "ns/a", "ns", "a/ns"} {
		id, err := RBDImage("image", "p", name)
		if err != nil {
			t.Fatal(err)
		}
		for _, resource := range []string{RBDResource("f", id), RBDFlattenResource("f", id)} {
			if seen[resource] {
				t.Errorf("%s is two things", resource)
			}
			seen[resource] = true
		}
	}
	first, again, other := FollowUp("op-1", "x"), FollowUp("op-1", "x"), FollowUp("op-2", "x")
	if first != again || first == other || len(first) != 29 {
		t.Errorf("%q, %q, %q", first, again, other)
	}
}

func cephSnapshot(t *testing.T, facts map[string]string) *Snapshot {
	t.Helper()
	d := Empty().Draft()
	for node, fact := range facts {
		f := strings.Fields(fact) // FSID POOL LIVENESS [ERROR]
		d.Nodes.Put(node, &storev1.Node{Id: node}, 1)
		d.Statuses.Put(node, &storev1.NodeStatus{Id: node, Liveness: storev1.NodeLiveness(storev1.NodeLiveness_value["NODE_LIVENESS_"+f[2]])}, 1)
		inventory := &agentv1.CephInventory{Fsid: f[0], Pools: []*agentv1.CephPool{{Name: f[1]}}}
		if len(f) > 3 {
			inventory.Error = f[3]
		}
		b, err := proto.Marshal(inventory)
		if err != nil {
			t.Fatal(err)
		}
		d.Ceph.Put(node, &storev1.NodeCeph{Node: node, Inventory: b}, 1)
	}
	domain, err := proto.Marshal(&agentv1.Domain{Disks: []*debvisorv1.VMDisk{
		{Type: "network", StorageId: "rbd:p", Source: "p/web"},
		{Type: "network", StorageId: "nbd:x", Source: "p/db"},
		{Type: "network", StorageId: "rbd:c0ffee00-0000-4000-8000-000000000001/p", Source: "p/elsewhere"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	d.VMs.Put("u", &storev1.VM{Uuid: "u", Name: "web", Node: "b", Domain: domain}, 1)
	return d.Snapshot(2)
}

func TestWhichNodeSeesWhichCeph(t *testing.T) {
	s := cephSnapshot(t, map[string]string{
		"a": "f p SUSPECT", "b": "f p ONLINE", "c": "f p UNREACHABLE", "d": "g p2 ONLINE", "e": "f p ONLINE timed-out",
	})
	if fsid, err := s.CephWith("x", "", "p"); err != nil || fsid != "f" {
		t.Errorf("%q, %v", fsid, err)
	}
	if _, err := s.CephWith("x", "", ""); !errdefs.Is(err, errdefs.FailedPrecondition) || !strings.Contains(err.Error(), "x.node") {
		t.Errorf("of two: %v", err)
	}
	if fsid, err := s.CephWith("x", "d", "p"); err != nil || fsid != "g" {
		t.Errorf("%q, %v", fsid, err)
	}
	if _, err := s.CephWith("x", "", "none"); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("of no pool: %v", err)
	}
	if _, err := s.CephWith("x", "z", "p"); !errdefs.Is(err, errdefs.FailedPrecondition) {
		t.Errorf("of no Ceph: %v", err)
	}
	if nodes, why := s.CephNodes("f"); strings.Join(nodes, " ") != "b a" || why != "" {
		t.Errorf("%v, %q", nodes, why)
	}
	if nodes, why := s.CephNodes("none"); len(nodes) > 0 || why == "" {
		t.Errorf("%v, %q", nodes, why)
	}
	if users := s.CephUsers("f", "p/web"); strings.Join(users, " ") != "b" {
		t.Errorf("%v", users)
	}
	for _, path := range []string{"p/db", "p/we", "web", "p/elsewhere"} {
		if users := s.CephUsers("f", path); len(users) > 0 {
			t.Errorf("%s is used on %v", path, users)
		}
	}
	if users := s.CephUsers("g", "p/web"); len(users) > 0 {
		t.Errorf("in another cluster: %v", users)
	}
}
