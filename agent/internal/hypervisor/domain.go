package hypervisor

import (
	"context"
	"fmt"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// Domains lists all domains, active and defined.
func (h *Hypervisor) Domains(ctx context.Context) ([]*agentv1.Domain, error) {
	return call(ctx, h, "listing domains", func(c *libvirt.Connect) ([]*agentv1.Domain, error) {
		list, err := c.ListAllDomains(0)
		if err != nil {
			return nil, err
		}
		defer free(list)
		out := make([]*agentv1.Domain, 0, len(list))
		for i := range list {
			d, err := h.describe(&list[i])
			if has(err, libvirt.ERR_NO_DOMAIN) {
				continue // gone since the list was made
			}
			if err != nil {
				return nil, err
			}
			out = append(out, d)
		}
		h.cpus.forgetBut(out)
		h.definitions.forgetBut(out)
		return out, nil
	})
}

// Domain tells one domain; nil: there is none.
func (h *Hypervisor) Domain(ctx context.Context, uuid string) (*agentv1.Domain, error) {
	return onDomain(ctx, h, "looking at domain "+uuid, uuid, func(d *libvirt.Domain) (*agentv1.Domain, error) {
		return h.describe(d)
	}, nil)
}

// onDomain runs f on a domain and frees it; without such a domain the answer
// is absent.
func onDomain[T any](ctx context.Context, h *Hypervisor, doing, uuid string, f func(*libvirt.Domain) (T, error), absent T) (T, error) {
	return call(ctx, h, doing, func(c *libvirt.Connect) (T, error) {
		d, err := c.LookupDomainByUUIDString(uuid)
		if has(err, libvirt.ERR_NO_DOMAIN) {
			return absent, nil
		}
		if err != nil {
			return absent, err
		}
		defer func() { _ = d.Free() }()
		value, err := f(d)
		if has(err, libvirt.ERR_NO_DOMAIN) {
			return absent, nil
		}
		return value, err
	})
}

func free(list []libvirt.Domain) {
	for i := range list {
		_ = list[i].Free()
	}
}

// describe reads all that libvirt tells of a domain.
func (h *Hypervisor) describe(d *libvirt.Domain) (*agentv1.Domain, error) {
	s, err := sight(d)
	if err != nil {
		return nil, err
	}
	def, err := definition(d, 0)
	if err != nil {
		return nil, err
	}
	out := &agentv1.Domain{
		Uuid: def.UUID, Name: def.Name, State: s.vmState(), Persistent: s.Persistent,
		MemoryBytes: memoryBytes(def), Vcpus: vcpus(def), Disks: disks(def),
		VirtType: def.Type, Interfaces: interfaces(def), HostDevices: hostDevices(def), SharedDirectories: sharedDirectories(def),
	}
	if def.OS != nil && def.OS.Type != nil {
		out.Arch, out.MachineType = def.OS.Type.Arch, h.canonical(def.OS.Type.Machine)
	}
	if s.Persistent {
		if out.Autostart, err = d.GetAutostart(); err != nil {
			return nil, err
		}
	}
	if n, err := d.SnapshotNum(0); err == nil {
		out.Snapshots = uint32(n)
	} else if !has(err, libvirt.ERR_NO_SUPPORT) {
		return nil, err
	}
	cpu, err := h.cpuOf(d, def, s.active())
	if err != nil {
		return nil, err
	}
	out.CpuHash = h.cpus.keep(cpu)
	return out, h.tellDefinition(d, out)
}

// active tells whether there is a QEMU.
func (s Sighting) active() bool {
	return s.state != libvirt.DOMAIN_SHUTOFF && s.state != libvirt.DOMAIN_CRASHED && s.state != libvirt.DOMAIN_NOSTATE
}

// cpuOf is what the guest needs of a CPU: of one that is active, what a
// migration would carry, in which libvirt has spelt out what the host gave it.
func (h *Hypervisor) cpuOf(d *libvirt.Domain, def libvirtxml.Domain, active bool) (*agentv1.CPUDescription, error) {
	if active {
		migratable, err := definition(d, libvirt.DOMAIN_XML_MIGRATABLE)
		switch {
		case err == nil:
			def = migratable
		case !has(err, libvirt.ERR_INVALID_ARG) && !has(err, libvirt.ERR_NO_SUPPORT): // libvirt's test driver
			return nil, err
		}
	}
	return describeCPU(def, active, h.hostCPU(def.Type))
}

func definition(d *libvirt.Domain, flags libvirt.DomainXMLFlags) (libvirtxml.Domain, error) {
	var def libvirtxml.Domain
	xml, err := d.GetXMLDesc(flags)
	if err != nil {
		return def, err
	}
	if err := def.Unmarshal(xml); err != nil {
		return def, fmt.Errorf("reading the definition: %w", err)
	}
	return def, nil
}

func memoryBytes(def libvirtxml.Domain) uint64 {
	if def.Memory == nil {
		return 0
	}
	return scaled(uint64(def.Memory.Value), def.Memory.Unit)
}

// scaled gives bytes; libvirt writes KiB, and KiB is its default.
func scaled(value uint64, unit string) uint64 {
	switch unit {
	case "b", "bytes":
		return value
	case "MiB", "M":
		return value << 20
	case "GiB", "G":
		return value << 30
	default:
		return value << 10
	}
}

func vcpus(def libvirtxml.Domain) uint32 {
	if def.VCPU == nil {
		return 0
	}
	return uint32(def.VCPU.Value)
}
