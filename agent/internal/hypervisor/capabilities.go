package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Capabilities tells what the host and its hypervisor can do.
func (h *Hypervisor) Capabilities(ctx context.Context) (*debvisorv1.NodeCapabilities, error) {
	return call(ctx, h, "asking for the capabilities", func(c *libvirt.Connect) (*debvisorv1.NodeCapabilities, error) {
		caps, err := capabilities(c)
		if err != nil {
			return nil, err
		}
		h.owner.Store(ownerIn(caps))
		out := &debvisorv1.NodeCapabilities{
			HostUuid: caps.Host.UUID, MachineTypes: machines(caps), Kernel: kernel(),
		}
		if cpu := caps.Host.CPU; cpu != nil {
			out.Arch, out.CpuModel, out.CpuVendor = cpu.Arch, cpu.Model, cpu.Vendor
		}
		if v, err := c.GetLibVersion(); err == nil {
			out.LibvirtVersion = version(v)
		}
		if v, err := c.GetVersion(); err == nil {
			out.QemuVersion = version(v)
		}
		if out.Networks, err = networks(c); err != nil {
			return nil, err
		}
		return out, nil
	})
}

// owner is the user and group that QEMU runs as.
type owner struct{ uid, gid int }

// QEMUOwner tells the user and group that QEMU runs as, as libvirt last said:
// with each connection the inventory asks for the capabilities, which take
// libvirt a second where it looks at its emulators anew.
func (h *Hypervisor) QEMUOwner(ctx context.Context) (uid, gid int, err error) {
	if known := h.owner.Load(); known != nil {
		return known.uid, known.gid, nil
	}
	o, err := call(ctx, h, "asking who QEMU runs as", func(c *libvirt.Connect) (owner, error) {
		caps, err := capabilities(c)
		if err != nil {
			return owner{}, err
		}
		if found := ownerIn(caps); found != nil {
			h.owner.Store(found)
			return *found, nil
		}
		return owner{}, errors.New("libvirt does not tell: no dac security model")
	})
	return o.uid, o.gid, err
}

// ownerIn finds the owner in the capabilities; nil where they do not tell.
func ownerIn(caps libvirtxml.Caps) *owner {
	for _, model := range caps.Host.SecModel {
		if model.Name != "dac" {
			continue
		}
		for _, label := range model.Labels {
			if m := dacLabel.FindStringSubmatch(label.Value); m != nil {
				uid, _ := strconv.Atoi(m[1])
				gid, _ := strconv.Atoi(m[2])
				return &owner{uid, gid}
			}
		}
	}
	return nil
}

var dacLabel = regexp.MustCompile(`^\+(\d+):\+(\d+)$`)

func capabilities(c *libvirt.Connect) (libvirtxml.Caps, error) {
	var caps libvirtxml.Caps
	xml, err := c.GetCapabilities()
	if err != nil {
		return caps, err
	}
	if err := caps.Unmarshal(xml); err != nil {
		return caps, fmt.Errorf("reading the capabilities: %w", err)
	}
	return caps, nil
}

func machines(caps libvirtxml.Caps) []string {
	var out []string
	for _, g := range caps.Guests {
		if caps.Host.CPU == nil || g.Arch.Name != caps.Host.CPU.Arch {
			continue
		}
		for _, m := range g.Arch.Machines {
			out = append(out, m.Name)
			if m.Canonical != "" {
				out = append(out, m.Canonical)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// networks are libvirt's active networks and the host's bridges.
func networks(c *libvirt.Connect) ([]string, error) {
	var out []string
	list, err := c.ListAllNetworks(libvirt.CONNECT_LIST_NETWORKS_ACTIVE)
	if err != nil && !has(err, libvirt.ERR_NO_SUPPORT) {
		return nil, err
	}
	for i := range list {
		if name, err := list[i].GetName(); err == nil {
			out = append(out, name)
		}
		_ = list[i].Free()
	}
	bridges, _ := filepath.Glob("/sys/class/net/*/bridge")
	for _, b := range bridges {
		out = append(out, filepath.Base(filepath.Dir(b)))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// version reads libvirt's encoding: major*1,000,000 + minor*1,000 + release.
func version(v uint32) string {
	return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1000%1000, v%1000)
}

func kernel() string {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(release))
}
