package planner

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// processors refuses a node that has fewer CPUs than the guest.
func processors(_ *World, h *host, m *mover, o *objections) {
	if n := m.domain.GetVcpus(); h.cpus > 0 && n > h.cpus {
		o.no(CPUCount, "VM %s has %d CPUs and the node has %d", m.guest.name(), n, h.cpus)
	}
}

// machine refuses a node whose hypervisor does not run such guests. What the
// guest says nothing of is not asked for.
func machine(_ *World, h *host, m *mover, o *objections) {
	d, name := m.domain, m.guest.name()
	if arch := d.GetArch(); arch != "" && arch != h.caps.GetArch() && (arch != "i686" || h.caps.GetArch() != "x86_64") {
		o.no(Arch, "VM %s is of architecture %s and the node of %s", name, arch, cmp.Or(h.caps.GetArch(), "one that is not known yet"))
	}
	if t := d.GetVirtType(); t != "" && !slices.Contains(h.caps.GetVirtTypes(), t) {
		o.no(VirtType, "VM %s is of type %s, and libvirt there runs %s", name, t, listed(h.caps.GetVirtTypes()))
	}
	if t := d.GetMachineType(); t != "" && !slices.Contains(h.caps.GetMachineTypes(), t) {
		o.no(MachineType, "VM %s has the machine type %s, which QEMU there (%s) does not have", name, t, cmp.Or(h.caps.GetQemuVersion(), "of unknown version"))
	}
}

// listed joins what a node reported.
func listed(words []string) string {
	const most = 5
	if len(words) == 0 {
		return "nothing that was reported yet"
	}
	return few(words, most, ", ")
}

// network refuses a node without the networks that the guest's interfaces are
// joined to.
func network(_ *World, h *host, m *mover, o *objections) {
	for i, nic := range m.domain.GetInterfaces() {
		if nic.GetSource() == "" {
			continue
		}
		what, has := "", h.caps.GetNetworks()
		switch nic.GetType() {
		case "network":
			what = "libvirt network"
		case "bridge":
			what = "bridge"
		case "direct":
			what, has = "host interface", h.caps.GetHostInterfaces()
		default:
			continue
		}
		if !slices.Contains(has, nic.GetSource()) {
			o.no(Network, "interface %d of VM %s (%s) needs the %s %s; the node has %s", i+1, m.guest.name(), nic.GetMac(), what, nic.GetSource(), listed(has))
		}
	}
}

// directories refuses a node that does not see the host directories that the
// guest uses.
func directories(_ *World, h *host, m *mover, o *objections) {
	for _, dir := range m.domain.GetSharedDirectories() {
		var here *volume
		if m.guest.at != nil {
			here = m.guest.at.volume(dir)
		}
		if here == nil || !here.GetShared() || !sees(h, m.guest.at, dir, here.GetStorageId()) {
			o.no(SharedDirectory, "VM %s uses the directory %s of its host, and nothing says that the node has the same files there", m.guest.name(), dir)
		}
	}
}

// older tells whether a QEMU version is of an older release than another.
// Fixes within a release change nothing that a migration carries. A version
// that is not known is not older.
func older(version, than string) bool {
	a, ok := release(version)
	b, known := release(than)
	return ok && known && slices.Compare(a, b) < 0
}

// release gives the first two numbers of a version.
func release(version string) ([]int, bool) {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return nil, false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return []int{major, minor}, err1 == nil && err2 == nil
}
