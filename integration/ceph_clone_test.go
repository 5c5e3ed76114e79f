package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// image refers to an image of RBD: its name is image, or namespace/image.
func image(pool, name string) *debvisorv1.DatasetRef {
	return &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_RBD, Pool: pool, Name: name}
}

// imageSnapshot is a snapshot of an image as rbd lists it.
type imageSnapshot struct {
	Name      string
	Namespace struct{ Type string }
}

// snapshotsOf are all snapshots of an image, those of groups and in the trash too.
func (c *cluster) snapshotsOf(image string) (all []imageSnapshot) {
	c.t.Helper()
	c.rbdJSON(&all, "snap", "ls", "--all", image)
	return all
}

// trash is what lies in the trash of the pools and of namespaces, images that are being made included.
func (c *cluster) trash(namespaces ...string) (all []string) {
	c.t.Helper()
	for _, pool := range slices.Concat(c.Ceph.Pools(), namespaces) {
		all = append(all, lines(c.rbd("trash", "ls", "--all", pool))...)
		for _, name := range lines(c.rbd("ls", pool)) {
			if strings.HasPrefix(name, ".dv-") {
				all = append(all, pool+"/"+name)
			}
		}
	}
	return all
}

// checksum is that of an image or a snapshot.
func (c *cluster) checksum(spec string) string {
	c.t.Helper()
	out, err := c.Operator.Run(c.within(30*time.Second), "bash", "-c", `set -o pipefail; rbd -c "$1" export --no-progress "$2" - | sha256sum`, "sum", c.Ceph.Conf(), spec)
	c.must(err)
	return out
}

// struck has a failpoint of the agents met by whoever does what is asked for, and that agent killed there and started again.
func (c *cluster) struck(point string, ask func()) {
	c.t.Helper()
	ctx := c.within(time.Minute)
	for _, n := range c.Nodes {
		c.must(n.Failpoints().Arm(ctx, point, hold))
	}
	ask()
	var at *lab.Node
	c.eventually(45*time.Second, "an agent is at "+point, func() error {
		for _, n := range c.Nodes {
			if hits, err := n.Failpoints().Hits(ctx, point); err != nil || hits > 0 {
				at = n
				return err
			}
		}
		return fmt.Errorf("none is")
	})
	c.must(at.Agent.Kill())
	for _, n := range c.Nodes {
		if n != at {
			c.must(n.Failpoints().Disarm(ctx, point))
		}
	}
	c.must(at.Agent.Start())
}

// template makes an image with something in it and a template's snapshot of it, and waits until the cluster can see both.
func (c *cluster) template(name string) *debvisorv1.SnapshotRef {
	c.t.Helper()
	c.rbd("create", "--size", "16M", "vms/"+name)
	c.rbd("bench", "--io-type", "write", "--io-size", "64K", "--io-total", "4M", "--io-pattern", "rand", "vms/"+name)
	made, err := c.api(c.running()).storage.CreateRbdTemplateSnapshot(c.within(time.Minute), &debvisorv1.RbdTemplateRequest{Image: image("vms", name), Label: "golden"})
	c.must(err)
	return made.GetSnapshot()
}

// TestSnapshotsOnRBD: what the API does to snapshots of images is seen by rbd, each request once, and never to those of others.
func TestSnapshotsOnRBD(t *testing.T) {
	c := cephed.use(t)
	g := c.onImages()
	t.Run("a set of a VM is of one moment", func(t *testing.T) {
		c := c.inPart(t)
		set, err := c.api(c.running()).storage.CreateSnapshotSet(c.within(time.Minute), &debvisorv1.SnapshotSetRequest{Vm: vmRef(g.UUID), Label: "both"})
		c.must(err)
		var held []lab.History
		for _, d := range g.Disks {
			have := c.snapshotsOf(d.Path)
			if len(have) != 1 || have[0].Namespace.Type != "group" {
				t.Fatalf("%s has %v, want one snapshot that is a group's", d.Path, have)
			}
			h, err := c.HistoryIn(c.within(30*time.Second), d.Path+"@"+have[0].Name)
			c.must(err)
			held = append(held, h)
		}
		if len(set.GetSnapshots()) != 2 {
			t.Errorf("answered %v", set)
		}
		c.must(inStep(held[0], held[1]))
		list := set.GetSnapshots()
		gone, err := c.api(c.running()).storage.DeleteSnapshots(c.within(time.Minute), &debvisorv1.DeleteSnapshotsRequest{Snapshots: list})
		c.must(err)
		if have := c.snapshotsOf(g.Disks[0].Path); len(have) > 0 {
			t.Errorf("after %v there is %v", gone, have)
		}
		g.goesOn()
	})
	for _, point := range []string{"imageSnapshotBefore", "imageSnapshotTaken"} {
		t.Run(point, func(t *testing.T) {
			c := c.inPart(t)
			before := len(c.snapshotsOf(g.Disks[0].Path))
			ctx := withRequestID(c.within(2*time.Minute), requestID())
			req := &debvisorv1.SnapshotRequest{Dataset: image("vms", "images-vda"), Label: point}
			c.struck(point, func() {
				_, err := c.api(c.running()).storage.CreateSnapshot(metadata.AppendToOutgoingContext(ctx, "debvisor-wait", "none"), req)
				c.must(err)
			})
			again, err := c.api(c.running()).storage.CreateSnapshot(ctx, req)
			c.must(err)
			have := c.snapshotsOf(g.Disks[0].Path)
			if len(have) != before+1 || have[len(have)-1].Name != again.GetSnapshot().GetSnapshotName() {
				t.Errorf("%d snapshots before, now %v, answered %v", before, have, again)
			}
		})
	}
	t.Run("what others made stays", func(t *testing.T) {
		c := c.inPart(t)
		c.rbd("snap", "create", "--no-progress", "vms/images-vda@by-hand")
		pruned, err := c.api(c.running()).storage.PruneSnapshots(c.within(time.Minute), &debvisorv1.PruneRequest{
			Dataset: image("vms", "images-vda"), Policy: &debvisorv1.RetentionPolicy{KeepLast: 1},
		})
		c.must(err)
		var names []string
		for _, s := range c.snapshotsOf("vms/images-vda") {
			names = append(names, s.Name)
		}
		if len(names) != 2 || !slices.Contains(names, "by-hand") || pruned.GetRemovedCount() != 1 {
			t.Errorf("pruned %v; left are %v", pruned, names)
		}
	})
	if left := c.trash(); len(left) > 0 {
		t.Errorf("in the trash: %v", left)
	}
}

// TestClonesOnRBD: one request is one clone whoever dies, what has clones stays, and nothing is left over.
func TestClonesOnRBD(t *testing.T) {
	c := cephed.use(t)
	ask := c.api(c.running())
	c.rbd("namespace", "create", "clones/acme")
	golden := c.template("golden")
	source := "vms/golden@" + golden.GetSnapshotName()
	want := c.checksum(source)
	clone := func(name string) *debvisorv1.RbdCloneRequest {
		return &debvisorv1.RbdCloneRequest{TemplateSnapshot: golden, NewImage: image("clones", name)}
	}
	children := func() []string { return lines(c.rbd("children", "--all", source)) }
	for i, point := range []string{"imageCloneBefore", "imageCloned"} {
		t.Run(point, func(t *testing.T) {
			c := c.inPart(t)
			name := fmt.Sprintf("acme/web%d", i)
			ctx := withRequestID(c.within(2*time.Minute), requestID())
			c.struck(point, func() {
				_, err := ask.storage.CloneRbdFromTemplate(metadata.AppendToOutgoingContext(ctx, "debvisor-wait", "none"), clone(name))
				c.must(err)
			})
			made, err := ask.storage.CloneRbdFromTemplate(ctx, clone(name))
			c.must(err)
			if have := children(); len(have) != i+1 || made.GetDepth() != 1 {
				t.Errorf("children are %v, answered %v", have, made)
			}
			if got := c.checksum("clones/" + name); got != want {
				t.Errorf("the clone holds %s, the template %s", got, want)
			}
		})
	}
	t.Run("the name is taken", func(t *testing.T) {
		_, err := ask.storage.CloneRbdFromTemplate(c.within(time.Minute), clone("acme/web0"))
		if d := refused(t, err, codes.AlreadyExists); d.GetCode() != "IMAGE_EXISTS" {
			t.Errorf("refused with %v", d)
		}
	})
	t.Run("a template with clones stays", func(t *testing.T) {
		c := c.inPart(t)
		kept, err := ask.storage.DeleteSnapshots(c.within(time.Minute), &debvisorv1.DeleteSnapshotsRequest{Snapshots: []*debvisorv1.SnapshotRef{golden}})
		if said := fmt.Sprint(kept, err); !strings.Contains(said, "acme/web0") {
			t.Errorf("it says %s", said)
		}
		if have := children(); len(have) != 2 {
			t.Errorf("children are %v", have)
		}
	})
	t.Run("flattened and removed", func(t *testing.T) {
		c := c.inPart(t)
		flat := &debvisorv1.ImageRef{Image: image("clones", "acme/web0")}
		_, err := ask.storage.FlattenImage(c.within(time.Minute), flat)
		c.must(err)
		if have := children(); len(have) != 1 || c.checksum("clones/acme/web0") != want {
			t.Errorf("children are %v", have)
		}
		ctx := withRequestID(c.within(2*time.Minute), requestID())
		c.struck("imageDeleted", func() {
			_, err := ask.storage.DeleteImage(metadata.AppendToOutgoingContext(ctx, "debvisor-wait", "none"), flat)
			c.must(err)
		})
		_, err = ask.storage.DeleteImage(ctx, flat)
		c.must(err)
		_, err = ask.storage.DeleteImage(c.within(time.Minute), &debvisorv1.ImageRef{Image: image("clones", "acme/web1")})
		c.must(err)
		if left := lines(c.rbd("ls", "clones/acme")); len(left) > 0 {
			t.Errorf("left are %v", left)
		}
		_, err = ask.storage.DeleteSnapshots(c.within(time.Minute), &debvisorv1.DeleteSnapshotsRequest{Snapshots: []*debvisorv1.SnapshotRef{golden}})
		c.must(err)
		if have := c.snapshotsOf("vms/golden"); len(have) > 0 {
			t.Errorf("the template's image has %v", have)
		}
		_, err = ask.storage.DeleteImage(c.within(time.Minute), &debvisorv1.ImageRef{Image: image("vms", "golden")})
		refused(t, err, codes.FailedPrecondition) // it is nobody's clone
	})
	if left := c.trash("clones/acme"); len(left) > 0 {
		t.Errorf("in the trash: %v", left)
	}
}
