package hypervisor

import (
	"cmp"
	"fmt"

	"libvirt.org/go/libvirtxml"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// interfaces are a domain's network interfaces.
func interfaces(def libvirtxml.Domain) []*debvisorv1.VMInterface {
	if def.Devices == nil {
		return nil
	}
	var out []*debvisorv1.VMInterface
	for _, i := range def.Devices.Interfaces {
		nic := &debvisorv1.VMInterface{}
		nic.Type, nic.Source = plugged(i.Source)
		if i.MAC != nil {
			nic.Mac = i.MAC.Address
		}
		out = append(out, nic)
	}
	return out
}

// plugged is libvirt's type of an interface and what of the host it needs.
func plugged(s *libvirtxml.DomainInterfaceSource) (kind, name string) {
	switch {
	case s == nil:
		return "", ""
	case s.Network != nil:
		return "network", s.Network.Network
	case s.Bridge != nil:
		return "bridge", s.Bridge.Bridge
	case s.Direct != nil:
		return "direct", s.Direct.Dev
	case s.User != nil:
		return "user", ""
	case s.Ethernet != nil:
		return "ethernet", ""
	case s.VHostUser != nil:
		return "vhostuser", ""
	case s.Hostdev != nil:
		return "hostdev", ""
	case s.VDPA != nil:
		return "vdpa", s.VDPA.Device
	case s.Internal != nil:
		return "internal", s.Internal.Name
	case s.Null != nil:
		return "null", ""
	case s.Server != nil:
		return "server", ""
	case s.Client != nil:
		return "client", ""
	case s.MCast != nil:
		return "mcast", ""
	case s.UDP != nil:
		return "udp", ""
	default:
		return "other", ""
	}
}

// sharedDirectories are those of the host that the guest sees.
func sharedDirectories(def libvirtxml.Domain) []string {
	if def.Devices == nil {
		return nil
	}
	var out []string
	for _, f := range def.Devices.Filesystems {
		dir := "unknown"
		switch s := f.Source; {
		case s == nil:
		case s.Mount != nil:
			dir = cmp.Or(s.Mount.Dir, s.Mount.Socket)
		case s.Bind != nil:
			dir = s.Bind.Dir
		case s.File != nil:
			dir = s.File.File
		case s.Block != nil:
			dir = s.Block.Dev
		case s.Volume != nil:
			dir = s.Volume.Pool + "/" + s.Volume.Volume
		case s.Template != nil:
			dir = s.Template.Name
		case s.RAM != nil:
			continue // the guest's own
		}
		out = append(out, dir)
	}
	return out
}

// hostDevices are the devices of the host that the guest uses directly, a kind
// and a name each: libvirt migrates none of them, nor what the host's own
// processor guards.
func hostDevices(def libvirtxml.Domain) []string {
	var out []string
	if s := def.LaunchSecurity; s != nil && (s.SEV != nil || s.SEVSNP != nil || s.TDX != nil || s.S390PV != nil) {
		out = append(out, "memory encrypted by the host's processor")
	}
	devices := def.Devices
	if devices == nil {
		return out
	}
	for _, d := range devices.Hostdevs {
		out = append(out, hostDevice(d))
	}
	for _, i := range devices.Interfaces {
		switch s := i.Source; {
		case s == nil:
		case s.Hostdev != nil && s.Hostdev.PCI != nil:
			out = append(out, pci(s.Hostdev.PCI.Address))
		case s.Hostdev != nil:
			out = append(out, "network device")
		case s.VDPA != nil:
			out = append(out, "vdpa "+s.VDPA.Device)
		}
	}
	for _, d := range devices.Disks {
		switch s := d.Source; {
		case s == nil:
		case s.NVME != nil && s.NVME.PCI != nil:
			out = append(out, "nvme "+pci(s.NVME.PCI.Address))
		case s.VHostVDPA != nil:
			out = append(out, "vdpa "+s.VHostVDPA.Dev)
		}
	}
	return append(out, hostEnds(devices)...)
}

// hostEnds are devices of the guest whose other end is one of the host's.
func hostEnds(devices *libvirtxml.DomainDeviceList) (out []string) {
	for _, d := range devices.TPMs {
		if d.Backend != nil && d.Backend.Passthrough != nil {
			out = append(out, "tpm")
		}
	}
	for _, d := range devices.Serials {
		if d.Source != nil && d.Source.Dev != nil {
			out = append(out, "serial "+d.Source.Dev.Path)
		}
	}
	for _, d := range devices.Parallels {
		if d.Source != nil && d.Source.Dev != nil {
			out = append(out, "parallel "+d.Source.Dev.Path)
		}
	}
	for _, d := range devices.Inputs {
		switch s := d.Source; {
		case s == nil:
		case s.Passthrough != nil:
			out = append(out, "input "+s.Passthrough.EVDev)
		case s.EVDev != nil:
			out = append(out, "input "+s.EVDev.Dev)
		}
	}
	for _, d := range devices.Memorydevs {
		if d.Source != nil && d.Source.Path != "" {
			out = append(out, d.Model+" "+d.Source.Path)
		}
	}
	return out
}

func hostDevice(d libvirtxml.DomainHostdev) string {
	switch {
	case d.SubsysPCI != nil && d.SubsysPCI.Source != nil:
		return pci(d.SubsysPCI.Source.Address)
	case d.SubsysUSB != nil && d.SubsysUSB.Source != nil:
		return usb(d.SubsysUSB.Source)
	case d.SubsysMDev != nil && d.SubsysMDev.Source != nil && d.SubsysMDev.Source.Address != nil:
		return "mdev " + d.SubsysMDev.Source.Address.UUID
	case d.SubsysSCSIHost != nil && d.SubsysSCSIHost.Source != nil:
		return "scsi_host " + d.SubsysSCSIHost.Source.WWPN
	case d.SubsysSCSI != nil && d.SubsysSCSI.Source != nil:
		switch s := d.SubsysSCSI.Source; {
		case s.ISCSI != nil:
			return "iscsi " + s.ISCSI.Name
		case s.Host != nil && s.Host.Adapter != nil:
			return "scsi " + s.Host.Adapter.Name
		}
	case d.CapsStorage != nil && d.CapsStorage.Source != nil:
		return "block " + d.CapsStorage.Source.Block
	case d.CapsMisc != nil && d.CapsMisc.Source != nil:
		return "char " + d.CapsMisc.Source.Char
	}
	return "device"
}

func usb(s *libvirtxml.DomainHostdevSubsysUSBSource) string {
	switch {
	case s.Address != nil:
		return fmt.Sprintf("usb bus %d device %d", number(s.Address.Bus), number(s.Address.Device))
	case s.Vendor != nil && s.Product != nil:
		return "usb " + s.Vendor.ID + ":" + s.Product.ID
	default:
		return "usb"
	}
}

func pci(a *libvirtxml.DomainAddressPCI) string {
	if a == nil {
		return "pci"
	}
	return fmt.Sprintf("pci %04x:%02x:%02x.%x", number(a.Domain), number(a.Bus), number(a.Slot), number(a.Function))
}

func number(n *uint) uint {
	if n == nil {
		return 0
	}
	return *n
}
