package hypervisor

import (
	"context"
	"crypto/rand"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
)

// CodeDefinition is the code of a definition that is not the one that was planned
// with.
const CodeDefinition = "DEFINITION_CHANGED"

// Replaced is a block device that takes another's place in a definition.
type Replaced struct {
	// Target is the guest's name of the disk, such as "vda".
	Target   string
	From, To string
}

// Redefined is a definition, as DomainDefinition has it, made ready for this host:
// disks replaced, passwords that were left out replaced by ones that nobody knows.
// A definition of another UUID, or with other disks, is refused.
func Redefined(text, uuid string, disks []Replaced) (string, error) {
	var def libvirtxml.Domain
	if err := def.Unmarshal(text); err != nil {
		return "", errdefs.New(errdefs.FailedPrecondition, CodeDefinition, "the VM's definition cannot be read").WithCause(err)
	}
	if def.UUID != uuid {
		return "", errdefs.New(errdefs.FailedPrecondition, CodeDefinition, "the definition is of the VM %q, not of %s", def.UUID, uuid)
	}
	for _, d := range disks {
		if !replace(&def, d) {
			return "", errdefs.New(errdefs.FailedPrecondition, CodeDefinition, "the VM's definition has no disk %s on the block device %s", d.Target, d.From)
		}
	}
	for _, c := range consoles(&def) {
		if *c.password == "" && *c.until == outdated {
			*c.password = rand.Text()[:8] // as long as VNC's can be
		}
	}
	return def.Marshal()
}

// replace replaces one disk; false: there is none such.
func replace(def *libvirtxml.Domain, r Replaced) bool {
	if def.Devices == nil {
		return false
	}
	for i := range def.Devices.Disks {
		d := &def.Devices.Disks[i]
		if d.Target == nil || d.Target.Dev != r.Target || d.Source == nil || d.Source.Block == nil {
			continue
		}
		if at := d.Source.Block.Dev; at != r.From && at != r.To {
			return false
		}
		d.Source.Block.Dev = r.To
		return true
	}
	return false
}

// Define makes a domain of a definition, or gives one that is there that
// definition. It can be repeated.
func (h *Hypervisor) Define(ctx context.Context, text string) error {
	ctx, span := obs.Start(ctx, "libvirt: defining a domain")
	_, err := call(ctx, h, "defining a domain", func(c *libvirt.Connect) (struct{}, error) {
		d, err := c.DomainDefineXML(text)
		if err == nil {
			_ = d.Free()
		}
		return struct{}{}, err
	})
	span.End(err)
	return err
}
