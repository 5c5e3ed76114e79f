package integration

import (
	"strings"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// TestARefusedDefinition moves a guest whose definition has QEMU be given arguments: it stays, and the operation says why at once.
func TestARefusedDefinition(t *testing.T) {
	c := plain.use(t)
	g, err := c.Nodes[0].DefineGuest(c.within(time.Minute), lab.GuestSpec{Name: "argued"})
	c.must(err)
	t.Cleanup(func() { c.forget(g) })
	m := &mover{Guest: g, c: c, from: c.Nodes[0], to: c.Nodes[1]}
	m.libvirt(m.from, func(d *libvirt.Domain) error {
		xml, err := d.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE)
		if err != nil {
			return err
		}
		xml = strings.Replace(xml, "</devices>", "</devices><commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><env name='X' value='y'/></commandline>", 1)
		return m.from.Define(xml)
	})
	c.must(m.from.Boot(g.UUID))
	a, _ := c.follower()
	c.must(m.known(c.within(30*time.Second), m.from))
	c.eventually(30*time.Second, "the guest can move", m.movable)
	op := c.ended(time.Minute, a, m.begin(a))
	if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_FAILED || !strings.Contains(op.GetError().GetMessage(), "does not let it in") ||
		!strings.Contains(op.GetError().GetMessage(), "qemu:") {
		t.Errorf("it ended %v: %v", op.GetState(), op.GetError())
	}
	c.must(m.runsOnly(m.from))
}
