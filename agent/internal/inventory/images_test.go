package inventory

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// TestImagesNameTheirCluster: disks on RBD are told by the cluster's fsid once it
// is known, whichever of its monitors the definition names, and another cluster's
// never are.
func TestImagesNameTheirCluster(t *testing.T) {
	known := healthy("vms")
	known.Fsid, known.Monitors = "f-1", []string{"10.0.0.1:3300", "10.0.0.1:6789", "10.0.0.2:3300"}
	want := map[string]string{
		"rbd:10.0.0.1:6789/vms":                "rbd:f-1/vms",
		"rbd:10.0.0.2/vms":                     "rbd:f-1/vms",
		"rbd:/vms":                             "rbd:f-1/vms",
		"rbd:10.9.9.9:6789,10.0.0.2:3300/vms":  "rbd:f-1/vms",
		"rbd:10.0.0.1:7000/vms":                "rbd:10.0.0.1:7000/vms",
		"rbd:10.9.9.9:3300/vms":                "rbd:10.9.9.9:3300/vms",
		"iscsi:iqn.2004-01.org.example:target": "iscsi:iqn.2004-01.org.example:target",
	}
	domain := &agentv1.Domain{Uuid: "u"}
	for id := range want {
		domain.Disks = append(domain.Disks, &debvisorv1.VMDisk{Target: id, Type: "network", Source: "vms/" + id, Shared: true, StorageId: id})
	}
	dir := root(t)
	synctest.Test(t, func(t *testing.T) {
		ceph := &cephCluster{known: known, err: context.DeadlineExceeded}
		c := New(Config{
			Node: "n", Hypervisor: &libvirtd{domains: map[string]*agentv1.Domain{"u": domain}}, Ceph: ceph, Root: dir,
			Log: hclog.New(&hclog.LoggerOptions{Output: &bytes.Buffer{}}),
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		c.pending.add("")
		time.Sleep(cephEvery / 2)
		told := func() map[string]string {
			all := map[string]string{}
			for _, d := range c.Inventory(true).GetDomains() {
				for _, disk := range d.GetDisks() {
					all[disk.GetTarget()] = disk.GetStorageId()
				}
			}
			return all
		}
		for id, got := range told() {
			if got != id {
				t.Errorf("before Ceph is known %s is told as %s", id, got)
			}
		}
		ceph.set(func(ceph *cephCluster) { ceph.err = nil })
		time.Sleep(2 * cephEvery)
		check := func(when string) {
			t.Helper()
			now := told()
			for id, name := range want {
				if now[id] != name {
					t.Errorf("%s %s is told as %q, want %q", when, id, now[id], name)
				}
			}
		}
		check("with Ceph")
		time.Sleep(2 * resyncEvery)
		check("after libvirt was asked again")
		ceph.set(func(ceph *cephCluster) { ceph.err = context.DeadlineExceeded })
		time.Sleep(2 * resyncEvery)
		check("while Ceph is dead")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
