package hypervisor

import (
	"cmp"
	"net"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// disks are a domain's, as its definition alone tells: of files and block
// devices neither size nor place is known here.
func disks(def libvirtxml.Domain) []*debvisorv1.VMDisk {
	if def.Devices == nil {
		return nil
	}
	out := make([]*debvisorv1.VMDisk, 0, len(def.Devices.Disks))
	for _, d := range def.Devices.Disks {
		disk := &debvisorv1.VMDisk{
			ReadOnly: d.ReadOnly != nil, Shareable: d.Shareable != nil, Device: cmp.Or(d.Device, "disk"),
			BackingFile: backing(d.BackingStore),
		}
		if d.Target != nil {
			disk.Target = d.Target.Dev
		}
		if d.Driver != nil {
			disk.Format, disk.Cache = d.Driver.Type, d.Driver.Cache
		}
		disk.Type, disk.Source = source(d.Source)
		if d.Source != nil && d.Source.Network != nil {
			disk.Shared, disk.StorageId = true, networkStorage(d.Source.Network)
		}
		out = append(out, disk)
	}
	return out
}

// backing names the image under the first; empty: there is none, or libvirt
// has not looked.
func backing(b *libvirtxml.DomainDiskBackingStore) string {
	if b == nil || b.Source == nil {
		return ""
	}
	_, name := source(b.Source)
	return name
}

func source(s *libvirtxml.DomainDiskSource) (kind, name string) {
	switch {
	case s == nil:
		return "", ""
	case s.File != nil:
		return "file", s.File.File
	case s.Block != nil:
		return "block", s.Block.Dev
	case s.Network != nil:
		return "network", s.Network.Name
	case s.Volume != nil:
		return "volume", s.Volume.Pool + "/" + s.Volume.Volume
	case s.Dir != nil:
		return "dir", s.Dir.Dir
	case s.NVME != nil:
		return "nvme", ""
	case s.VHostUser != nil:
		return "vhostuser", ""
	case s.VHostVDPA != nil:
		return "vhostvdpa", s.VHostVDPA.Dev
	default:
		return "", ""
	}
}

// networkStorage is the network storage's own name: RBD's pool, with the
// monitors of its cluster, Gluster's volume, iSCSI's target, or the server.
func networkStorage(n *libvirtxml.DomainDiskSourceNetwork) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(n.Name, "/"), "/")
	switch n.Protocol {
	case "rbd":
		return "rbd:" + monitors(n) + "/" + first
	case "gluster", "iscsi":
		return n.Protocol + ":" + first
	}
	if len(n.Hosts) == 0 {
		return n.Protocol + ":" + n.Name
	}
	return n.Protocol + ":" + cmp.Or(n.Hosts[0].Name, n.Hosts[0].Socket)
}

// monitors are those that a disk of RBD names, host:port or host, in order; empty:
// the host's own configuration names them.
func monitors(n *libvirtxml.DomainDiskSourceNetwork) string {
	var all []string
	for _, h := range n.Hosts {
		switch {
		case h.Name != "" && h.Port != "":
			all = append(all, net.JoinHostPort(h.Name, h.Port))
		case h.Name != "":
			all = append(all, h.Name)
		}
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}
