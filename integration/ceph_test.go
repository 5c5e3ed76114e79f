package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

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
	return c.guestLike(lab.GuestSpec{Name: "images", Disks: []lab.DiskSpec{{Kind: lab.DiskRBD}, {Kind: lab.DiskRBD}}})
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

// inStep checks that what two histories hold is the same, but for the value that was being written to one after the other.
func inStep(a, b lab.History) error {
	if len(a) == 0 || len(a) != len(b) && len(a) != len(b)+1 {
		return fmt.Errorf("the first disk ends with %d, the second with %d", a.Last().Counter, b.Last().Counter)
	}
	return errors.Join(a.Check(nil), b.Check(nil), a.Check(b))
}

// step checks that both disks of the guest have taken the same, as somebody else reads them.
func (m *mover) step(suffix string) {
	m.c.t.Helper()
	second, err := m.c.HistoryIn(m.c.within(30*time.Second), m.Disks[1].Path+suffix) // first, as it is written last
	m.c.must(err)
	first, err := m.c.HistoryIn(m.c.within(30*time.Second), m.Disks[0].Path+suffix)
	m.c.must(err)
	if suffix == "" && len(first) > len(second) {
		first = first[:len(second)] // the guest went on meanwhile
	}
	m.c.must(inStep(first, second))
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
			if d.GetAction() != "shared" {
				t.Errorf("the plan is to have %v", d)
			}
		}
		if len(plan.GetDisks()) != 2 || plan.GetEstimate().GetBytes() > 128<<20 {
			t.Errorf("planned: %d disks, %d bytes for a guest of 128 MiB", len(plan.GetDisks()), plan.GetEstimate().GetBytes())
		}
		op := g.moves(debvisorv1.MoveMethod_MOVE_METHOD_LIVE)
		if got := op.GetProgress().GetBytesTotal(); got > 160<<20 {
			t.Errorf("%d bytes went over for a guest of 128 MiB of memory", got)
		}
		g.arrived()
		g.lockedBy(g.to)
		g.step("")
		if after := ids(); strings.Join(after, "\n") != strings.Join(before, "\n") {
			t.Errorf("images before %v, after %v", before, after)
		}
		g = g.there()
		h, err := g.History()
		c.must(err)
		g.before, g.heard = h, len(g.ConsoleText())
	}
}
