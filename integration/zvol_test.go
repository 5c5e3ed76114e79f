package integration

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const increments = "zfs-increments"

// TestMigrateOnZvol moves a guest whose disk is a volume of ZFS: in increments, with the source's agent killed when the guest has left and
// the last increment has not; whole; and shut off. The first needs a lab in which nothing has moved yet: of a link that is not known the
// planner takes what has fewer bytes.
func TestMigrateOnZvol(t *testing.T) {
	t.Run("in increments, the source's agent killed before the last", func(t *testing.T) { pooled.use(t).zvolGuest().leavesBehind() })
	t.Run("whole", func(t *testing.T) {
		g := pooled.use(t).zvolGuest()
		ask, _ := g.c.follower()
		// With a fast link all of so small a volume costs less than the standstill of the last increment.
		g.movedBy(g.c.ended(3*time.Minute, ask, g.beginWith(ask, &debvisorv1.MigrateOptions{BandwidthMib: 1000})), "copy-live")
		g.arrived()
		g.volumesOnly(g.to)
	})
	t.Run("shut off", func(t *testing.T) {
		g := pooled.use(t).zvolGuest()
		c := g.c
		ask, _ := c.follower()
		c.must(g.from.Destroy(g.UUID))
		c.eventually(30*time.Second, "the cluster sees it off", func() error {
			vm, err := ask.vms.GetVM(c.within(5*time.Second), vmRef(g.UUID))
			if err == nil && vm.GetState() != debvisorv1.VMState_VM_STATE_SHUTOFF {
				err = fmt.Errorf("it is %v", vm.GetState())
			}
			return err
		})
		before, err := g.HistoryAt(g.from, g.Disks[0])
		c.must(err)
		g.movedBy(c.ended(3*time.Minute, ask, g.begin(ask)), increments)
		g.volumesOnly(g.to)
		c.must(errors.Join(g.to.Boot(g.UUID), g.Ticks(c.within(2*time.Minute))))
		c.must(g.runsOnly(g.to))
		h, err := g.History()
		c.must(err)
		if err := h.CheckRestarted(before); err != nil || len(before) == 0 {
			t.Errorf("%d records before: %v", len(before), err)
		}
	})
}

// leavesBehind moves the guest in increments, kills the source's agent when the guest has left and the last of its disk has not, and sees
// to it that nobody can let the target's copy run before it has.
func (m *mover) leavesBehind() {
	c := m.c
	c.t.Helper()
	ask, _ := c.follower()
	points := m.from.Failpoints()
	c.must(points.Arm(c.within(10*time.Second), "sendBeforeLastSnapshots", hold))
	watched := m.neverTwo()
	id := m.begin(ask)
	c.must(points.AwaitHit(c.within(3*time.Minute), "sendBeforeLastSnapshots"))
	c.must(m.from.Agent.Kill())
	c.eventually(20*time.Second, "the copy stands still", func() error {
		if d, err := m.to.Domain(m.UUID); err != nil || d.State != lab.DomainPaused {
			return fmt.Errorf("it is %+v: %w", d, err)
		}
		return nil
	})
	if got := c.zfs(m.to, "get", "-H", "-o", "value", "readonly", m.volume()); got != "on" {
		c.t.Errorf("the volume that is behind has readonly=%s", got)
	}
	if err := m.to.Resume(m.UUID); err == nil || !strings.Contains(err.Error(), "Read-only") {
		c.t.Errorf("the copy on a volume that is behind was let run: %v", err)
	}
	c.must(m.from.Agent.Start())
	op := c.ended(3*time.Minute, ask, id)
	c.must(watched.stop())
	m.movedBy(op, increments)
	m.arrived()
	m.volumesOnly(m.to)
}

// zvolGuest is the guest on a volume, as it is now.
func (c *cluster) zvolGuest() *mover {
	c.t.Helper()
	return c.guestLike(lab.GuestSpec{Name: "volume", Disks: []lab.DiskSpec{{Kind: lab.DiskZvol}}})
}

// volume is the dataset of the guest's disk.
func (m *mover) volume() string { return strings.TrimPrefix(m.Disks[0].Path, "/dev/zvol/") }

// movedBy checks that an operation has moved the guest, and its disk in that way.
func (m *mover) movedBy(op *debvisorv1.Operation, action string) {
	m.c.t.Helper()
	if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED {
		m.c.t.Fatalf("it is %v: %v", op.GetState(), op.GetError())
	}
	disks := op.GetMigration().GetDisks()
	if len(disks) != 1 || disks[0].GetAction() != action || disks[0].GetReason() == "" {
		m.c.t.Errorf("the disks went %v, want %s", disks, action)
	}
	m.c.t.Logf("attempt %d, %d ms, %d ms of standstill: %v", op.GetMigration().GetAttempt(), op.GetMigration().GetDurationMs(), op.GetMigration().GetDowntimeMs(), disks)
}

// volumesOnly checks that one node alone has the guest's volume, that it can be written to there, and that nothing else of the move is on
// either.
func (m *mover) volumesOnly(at *lab.Node) {
	m.c.t.Helper()
	m.c.eventually(20*time.Second, "one volume is left", func() error {
		var failed []error
		for _, n := range m.c.Machines {
			all := slices.DeleteFunc(lines(m.c.zfs(n, "list", "-H", "-o", "name,readonly", "-t", "all", "-r", lab.PoolName)), func(line string) bool {
				return !strings.Contains(line, m.volume()) && !strings.Contains(line, "debvisor-incoming") && !strings.Contains(line, "@dvm-")
			})
			want := []string{m.volume() + "\toff"}
			if n != at {
				want = nil
			}
			if !slices.Equal(all, want) {
				failed = append(failed, fmt.Errorf("%s has %q, want %q", n.Name, all, want))
			}
		}
		return errors.Join(failed...)
	})
	if mark := m.c.zfs(at, "get", "-H", "-o", "value", "org.debvisor:migration", m.volume()); mark != "-" {
		m.c.t.Errorf("the volume is marked %s", mark)
	}
}
