package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// rbd runs rbd as Ceph's administrator, past our daemons, and gives what it prints.
func (c *cluster) rbd(args ...string) string {
	c.t.Helper()
	out, err := c.Ceph.Admin(c.within(30*time.Second), "rbd", args...)
	c.must(err)
	return strings.TrimSpace(out)
}

// rbdJSON reads into v what rbd prints as JSON.
func (c *cluster) rbdJSON(v any, args ...string) {
	c.t.Helper()
	c.must(json.Unmarshal([]byte(c.rbd(append(args, "--format", "json")...)), v))
}

// locker is the address of who holds an image's exclusive lock, without the port; "": nobody.
func (c *cluster) locker(image string) string {
	c.t.Helper()
	var locks []struct{ Address string }
	c.rbdJSON(&locks, "lock", "ls", image)
	if len(locks) == 0 {
		return ""
	}
	host, _, _ := strings.Cut(locks[0].Address, ":")
	return host
}

// onImages is the guest with two disks on RBD.
func (c *cluster) onImages() *mover {
	c.t.Helper()
	return c.guestLike(lab.GuestSpec{Name: "images", Agent: true, Disks: []lab.DiskSpec{{Kind: lab.DiskRBD}, {Kind: lab.DiskRBD}}})
}

// lockedBy waits until a node's guest holds the locks of all its images.
func (m *mover) lockedBy(n *lab.Node) {
	m.c.t.Helper()
	for _, d := range m.Disks {
		m.c.eventually(20*time.Second, n.Name+" has the lock of "+d.Path, func() error {
			if got := m.c.locker(d.Path); got != n.Addr {
				return fmt.Errorf("%q has it, %s is %s", got, n.Name, n.Addr)
			}
			return nil
		})
	}
}

// inStep checks that what two disks hold is the same, but for the value that was being written to one after the other.
func inStep(a, b lab.History) error {
	if len(b) == 0 || len(a) != len(b) && len(a) != len(b)+1 {
		return fmt.Errorf("the first disk ends with %d, the second with %d", a.Last().Counter, b.Last().Counter)
	}
	return errors.Join(a.CheckRestarted(nil), b.CheckRestarted(nil), a.CheckRestarted(b))
}

// step checks that both disks of the guest have taken the same, as somebody else reads them.
func (m *mover) step() {
	m.c.t.Helper()
	second, err := m.c.HistoryIn(m.c.within(30*time.Second), m.Disks[1].Path) // first, as it is written last
	m.c.must(err)
	first, err := m.c.HistoryIn(m.c.within(30*time.Second), m.Disks[0].Path)
	m.c.must(err)
	m.c.must(inStep(first[:min(len(first), len(second))], second)) // it went on meanwhile
}

// TestMigrateOnRBD moves a guest on two images live, there and back: nothing is copied, and the exclusive locks go over.
func TestMigrateOnRBD(t *testing.T) {
	c := cephed.use(t)
	g := c.onImages()
	ids := func() (all []string) {
		for _, d := range g.Disks {
			var info struct{ ID string }
			c.rbdJSON(&info, "info", d.Path)
			all = append(all, info.ID)
		}
		return append(all, c.rbd("ls", "--long", "vms"))
	}
	before := ids()
	for range 2 {
		g.lockedBy(g.from)
		plan, err := c.api(c.running()).migrations.PrepareMigration(c.within(20*time.Second), &debvisorv1.VMMigratePlan{Vm: vmRef(g.UUID), Target: node(g.to.Name)})
		c.must(err)
		for _, d := range plan.GetDisks() {
			if d.GetAction() != "shared" || d.GetBytes() != 0 {
				t.Errorf("the plan is to have %v", d)
			}
		}
		if len(plan.GetDisks()) != 2 {
			t.Errorf("planned: %d disks", len(plan.GetDisks()))
		}
		op := g.moves(debvisorv1.MoveMethod_MOVE_METHOD_LIVE)
		if got := op.GetProgress().GetBytesTotal(); got > 160<<20 {
			t.Errorf("%d bytes went over for a guest of 128 MiB of memory", got)
		}
		g.arrived()
		g.lockedBy(g.to)
		g.step()
		if after := ids(); strings.Join(after, "\n") != strings.Join(before, "\n") {
			t.Errorf("images before %v, after %v", before, after)
		}
		g = g.there()
		h, err := g.History()
		c.must(err)
		g.before, g.heard = h, len(g.ConsoleText())
	}
}

// hasCeph waits until a node says how its Ceph is. Asking for plans instead would use up how many a caller may have.
func (m *mover) hasCeph(n *lab.Node, want string) {
	m.c.t.Helper()
	m.c.eventually(45*time.Second, n.Name+" says of Ceph "+want, func() error {
		nodes, err := m.c.api(m.c.running()).nodes.ListNodes(m.c.within(10*time.Second), &debvisorv1.Empty{})
		if got := find(nodes, n.Name).GetHealth().GetCephStatus(); err == nil && got != want {
			err = fmt.Errorf("it says %q", got)
		}
		return err
	})
}

// TestNoImageThere: a guest on RBD is planned to no node that does not see its images, and the target itself refuses one to which two
// hosts could write.
func TestNoImageThere(t *testing.T) {
	c := cephed.use(t)
	g := c.onImages()
	ask := c.api(c.running())
	t.Run("an image without exclusive-lock", func(t *testing.T) {
		c := c.inPart(t)
		c.rbd("create", "--size", "16M", "--image-feature", "layering", "vms/unlocked")
		at, to := c.Nodes[0], c.Nodes[1]
		off, err := at.DefineGuest(c.within(time.Minute), lab.GuestSpec{Name: "unlocked", Disks: []lab.DiskSpec{{Kind: lab.DiskRBD, Image: "vms/unlocked"}}})
		c.must(err)
		spec := &debvisorv1.VMMigrateSpec{Vm: vmRef(off.UUID), Source: node(at.Name), Target: node(to.Name)}
		c.eventually(30*time.Second, "it is planned", func() error {
			plan, err := ask.migrations.PrepareMigration(c.within(10*time.Second), &debvisorv1.VMMigratePlan{Vm: vmRef(off.UUID), Target: node(to.Name)})
			if err == nil && !plan.GetAllowed() {
				err = errors.New(plan.GetMessage())
			}
			return err
		})
		_, err = ask.migrations.MigrateVM(c.within(time.Minute), spec)
		if d := refused(t, err, codes.Aborted); !strings.Contains(d.GetMessage(), "without the feature exclusive-lock") {
			t.Errorf("refused with %v", d)
		}
		c.must(errors.Join(at.Undefine(off.UUID), c.unused("vm/"+off.UUID)))
		c.rbd("rm", "--no-progress", "vms/unlocked")
	})
	t.Run("a node without Ceph", func(t *testing.T) {
		c := c.inPart(t)
		plan := func() (*debvisorv1.MigrationPlanResult, error) {
			return ask.migrations.PrepareMigration(c.within(10*time.Second), &debvisorv1.VMMigratePlan{Vm: vmRef(g.UUID), Target: node(g.to.Name)})
		}
		c.must(g.to.TakeCeph())
		t.Cleanup(func() {
			if err := g.to.GiveCeph(); err != nil {
				t.Error(err)
			}
		})
		g.hasCeph(g.to, "none")
		c.eventually(10*time.Second, "the node is known to have no Ceph", func() error {
			p, err := plan()
			if err != nil {
				return err
			}
			if p.GetAllowed() || !strings.Contains(p.GetMessage(), g.Disks[0].Path) || !strings.Contains(p.GetMessage(), "has no Ceph") {
				return fmt.Errorf("the plan is %v", p)
			}
			return nil
		})
		_, err := ask.migrations.MigrateVM(c.within(20*time.Second), g.spec())
		refused(t, err, codes.FailedPrecondition)
		c.must(g.runsOnly(g.from))
		c.must(g.to.GiveCeph())
		g.hasCeph(g.to, "HEALTH_OK")
		c.eventually(10*time.Second, "it is planned there again", g.movable)
	})
}
