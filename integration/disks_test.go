package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// everyDisk are a guest's disks of every kind.
var everyDisk = []lab.DiskSpec{
	{}, {Kind: lab.DiskLocal, Format: "qcow2"}, {Kind: lab.DiskDevice}, {Kind: lab.DiskLocal, Media: true, MiB: 3},
}

// unmovable is a device with which QEMU moves no guest live.
const unmovable = `<filesystem type='mount' accessmode='mapped'><source dir='/var/lib/libvirt/images'/><target dir='shared'/></filesystem>`

// contents are what a guest's disks hold on a node: the counters of those that it writes, the checksums of media.
type contents struct {
	counters map[string]lab.History
	sums     map[string]string
}

func (m *mover) contents(n *lab.Node) contents {
	m.c.t.Helper()
	out := contents{map[string]lab.History{}, map[string]string{}}
	for _, d := range m.Disks {
		if d.Media {
			raw, err := os.ReadFile(d.On(n))
			m.c.must(err)
			sum := sha256.Sum256(raw)
			out.sums[d.Target] = hex.EncodeToString(sum[:])
			continue
		}
		h, err := m.HistoryAt(n, d)
		m.c.must(err)
		out.counters[d.Target] = h
	}
	return out
}

// holds checks that a node has all that the disks held before. A guest that is shut down may be so between a disk and the next, so
// that after a restart the disks but the first miss a value.
func (m *mover) holds(n *lab.Node, before contents, restarted bool) {
	m.c.t.Helper()
	now := m.contents(n)
	for target, h := range now.counters {
		then := before.counters[target]
		var err error
		switch {
		case !restarted:
			err = h.Check(then)
		case target == m.Disks[0].Target:
			err = h.CheckRestarted(then)
		case len(h) < len(then) || !slices.Equal(h[:len(then)], then):
			err = errors.New("what it held is gone")
		}
		if err != nil {
			m.c.t.Errorf("disk %s: %v", target, err)
		}
		if len(h) == 0 {
			m.c.t.Errorf("disk %s holds nothing", target)
		}
	}
	for target, sum := range now.sums {
		if sum != before.sums[target] {
			m.c.t.Errorf("the contents of %s have changed", target)
		}
	}
}

// filesOnly says what is wrong unless the guest's own files are on one node and nothing of them is on any other, nor files half
// made.
func (m *mover) filesOnly(at *lab.Node) error {
	var failed []error
	for _, n := range m.c.Nodes {
		for _, d := range m.Disks {
			if d.Kind != lab.DiskLocal {
				continue
			}
			switch _, err := os.Stat(d.On(n)); {
			case n == at && err != nil:
				failed = append(failed, err)
			case n != at && err == nil:
				failed = append(failed, fmt.Errorf("%s is left", d.On(n)))
			}
			made, err := filepath.Glob(filepath.Join(filepath.Dir(d.On(n)), ".debvisor-*"))
			failed = append(failed, err)
			if len(made) > 0 {
				failed = append(failed, fmt.Errorf("left: %v", made))
			}
		}
	}
	return errors.Join(failed...)
}

// there turns a mover round: what was the target has the guest now.
func (m *mover) there() *mover {
	back := *m
	back.from, back.to = m.to, m.from
	return &back
}

// moves moves the guest with a method and gives the operation.
func (m *mover) moves(method debvisorv1.MoveMethod) *debvisorv1.Operation {
	m.c.t.Helper()
	a, _ := m.c.follower()
	spec := m.spec()
	spec.AllowDowntime = method == debvisorv1.MoveMethod_MOVE_METHOD_OFFLINE
	result, err := a.migrations.MigrateVM(m.c.within(2*time.Minute), spec)
	m.c.must(err)
	op := m.c.succeeded(time.Second, a, result.GetOperationId())
	if got := op.GetMigration().GetMethod(); got != method {
		m.c.t.Errorf("it moved %v, want %v", got, method)
	}
	return op
}

// TestAnOverlayMovesLive moves a guest whose shared disk is an overlay of another file, and back.
func TestAnOverlayMovesLive(t *testing.T) {
	c := plain.use(t)
	g := c.guestLike(lab.GuestSpec{Name: "overlay", Disks: []lab.DiskSpec{{}, {Format: "qcow2", Over: true}}})
	for range 2 {
		before := g.contents(g.from)
		g.moves(debvisorv1.MoveMethod_MOVE_METHOD_LIVE)
		g.settled(g.to)
		g.holds(g.to, before, false)
		g = c.guest(g.Name)
	}
}

// TestEveryDiskMovesLive moves a guest with disks of every kind, and back.
func TestEveryDiskMovesLive(t *testing.T) {
	c := plain.use(t)
	g := c.guestLike(lab.GuestSpec{Name: "mixed", Disks: everyDisk})
	for range 2 {
		before := g.contents(g.from)
		op := g.moves(debvisorv1.MoveMethod_MOVE_METHOD_LIVE_COPY)
		g.settled(g.to)
		g.holds(g.to, before, false)
		c.must(g.filesOnly(g.to))
		t.Logf("downtime %d ms", op.GetMigration().GetDowntimeMs())
		g = g.there()
	}
}

// TestOffline moves a guest that cannot go live, running and shut off, with its disks.
func TestOffline(t *testing.T) {
	c := plain.use(t)
	spec := lab.GuestSpec{Name: "offline", Disks: append(everyDisk[:2:2], everyDisk[3]), Devices: unmovable}
	g, err := c.Nodes[0].StartGuest(c.within(time.Minute), spec)
	c.must(err)
	t.Cleanup(func() { c.forget(g) })
	m := &mover{Guest: g, c: c, from: c.Nodes[0], to: c.Nodes[1]}
	c.must(m.known(c.within(30*time.Second), m.from))

	a, _ := c.follower()
	if plan, err := a.migrations.PrepareMigration(c.within(10*time.Second), &debvisorv1.VMMigratePlan{Vm: vmRef(m.UUID), Target: node(m.to.Name)}); err != nil || plan.GetAllowed() {
		t.Fatalf("it may move live: %v, %v", plan, err)
	}
	before := m.contents(m.from)
	op := m.moves(debvisorv1.MoveMethod_MOVE_METHOD_OFFLINE)
	c.must(m.runsOnly(m.to))
	m.goesOn()
	m.holds(m.to, before, true)
	c.must(m.filesOnly(m.to))
	if op.GetMigration().GetDowntimeMs() == 0 {
		t.Error("it is said to have stood still for no time")
	}
	t.Logf("downtime %d ms", op.GetMigration().GetDowntimeMs())

	m = m.there()
	m.powersOff(m.from)
	before = m.contents(m.from)
	c.eventually(30*time.Second, "the VM is known to be shut off", func() error { return m.stateIs(a, m.from, debvisorv1.VMState_VM_STATE_SHUTOFF) })
	m.moves(debvisorv1.MoveMethod_MOVE_METHOD_OFFLINE)
	if d, err := m.to.Domain(m.UUID); err != nil || d.State != lab.DomainShutOff || !d.Persistent {
		t.Errorf("on the target it is %+v, %v", d, err)
	}
	if d, err := m.from.Domain(m.UUID); err != nil || d.State != lab.DomainAbsent {
		t.Errorf("on the source it is %+v, %v", d, err)
	}
	c.must(m.filesOnly(m.to))
	if now := m.contents(m.to); !reflect.DeepEqual(now, before) {
		t.Errorf("its disks hold %v, and held %v", now, before)
	}
	c.must(m.to.Boot(m.UUID))
	c.must(m.Ticks(c.within(time.Minute)))
	m.holds(m.to, before, true)
}

// libvirt calls f with the guest as a node's libvirt has it, past our daemons.
func (m *mover) libvirt(n *lab.Node, f func(*libvirt.Domain) error) {
	m.c.t.Helper()
	conn, err := n.Connect()
	m.c.must(err)
	defer func() { _, _ = conn.Close() }()
	dom, err := conn.LookupDomainByUUIDString(m.UUID)
	m.c.must(err)
	defer func() { _ = dom.Free() }()
	m.c.must(f(dom))
}

// powersOff has the guest shut down by itself.
func (m *mover) powersOff(n *lab.Node) {
	m.c.t.Helper()
	m.libvirt(n, func(d *libvirt.Domain) error { return d.ShutdownFlags(libvirt.DOMAIN_SHUTDOWN_ACPI_POWER_BTN) })
	m.c.eventually(30*time.Second, "the guest has shut down", func() error {
		d, err := n.Domain(m.UUID)
		if err == nil && d.State != lab.DomainShutOff {
			err = fmt.Errorf("it is %v", d.State)
		}
		return err
	})
}

// stateIs says what is wrong unless a VM is shown in a state on a node.
func (m *mover) stateIs(a *api, n *lab.Node, want debvisorv1.VMState) error {
	vm, err := a.vms.GetVM(m.c.within(10*time.Second), vmRef(m.UUID))
	if err == nil && (vm.GetState() != want || vm.GetNode().GetNodeId().GetId() != n.Name || vm.GetOperationId() != "") {
		err = fmt.Errorf("it is %v", vm)
	}
	return err
}

// forget removes a guest of one test alone.
func (c *cluster) forget(g *lab.Guest) {
	for _, n := range c.Nodes {
		_ = n.Destroy(g.UUID)
		_ = n.Undefine(g.UUID)
	}
}

// TestAFileInTheWay has the target refuse to overwrite what is there.
func TestAFileInTheWay(t *testing.T) {
	c := plain.use(t)
	g := c.guestLike(lab.GuestSpec{Name: "mixed", Disks: everyDisk})
	for _, d := range g.Disks {
		if d.Kind != lab.DiskLocal {
			continue
		}
		stranger := []byte("somebody else's")
		c.must(os.WriteFile(d.On(g.to), stranger, 0o600))
		a, _ := c.follower()
		_, err := a.migrations.MigrateVM(c.within(time.Minute), g.spec())
		if err == nil || !strings.Contains(err.Error(), d.Path+" is on the target already") {
			t.Errorf("%s: the answer is %v", d.Target, err)
		}
		if left, err := os.ReadFile(d.On(g.to)); err != nil || string(left) != string(stranger) {
			t.Errorf("what was there is now %q, %v", left, err)
		}
		c.must(os.Remove(d.On(g.to)))
		g.settled(g.from)
		c.must(g.filesOnly(g.from))
	}
}

// TestADeafGuestGoesOn: a guest that does not shut down is left running.
func TestADeafGuestGoesOn(t *testing.T) {
	c := plain.use(t)
	g, err := c.Nodes[0].StartGuest(c.within(time.Minute), lab.GuestSpec{Name: "deaf", Deaf: true, Disks: []lab.DiskSpec{{Kind: lab.DiskLocal}}, Devices: unmovable})
	c.must(err)
	t.Cleanup(func() { c.forget(g) })
	m := &mover{Guest: g, c: c, from: c.Nodes[0], to: c.Nodes[1]}
	c.must(m.known(c.within(30*time.Second), m.from))
	m.before, err = g.History()
	c.must(err)
	spec := m.spec()
	spec.AllowDowntime, spec.Options = true, &debvisorv1.MigrateOptions{ShutdownSeconds: 3}
	a, _ := c.follower()
	result, err := a.migrations.MigrateVM(c.within(time.Minute), spec)
	if err == nil || !strings.Contains(err.Error(), "did not shut down within 3s") {
		t.Errorf("the answer is %v, %v", result, err)
	}
	m.settled(m.from)
	c.must(m.filesOnly(m.from))
}
