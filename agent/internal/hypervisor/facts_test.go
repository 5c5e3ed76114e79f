package hypervisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"libvirt.org/go/libvirtxml"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// recorded is what a libvirt 9.0 has told of a guest (virsh dumpxml).
func recorded(t *testing.T, name string) libvirtxml.Domain {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var def libvirtxml.Domain
	if err := def.Unmarshal(string(text)); err != nil {
		t.Fatal(err)
	}
	return def
}

func TestDevicesOfAGuestThatHasOneOfEach(t *testing.T) {
	def := recorded(t, "everything.xml")
	want := []string{
		"pci 0000:01:00.0", "usb 0x046d:0xc52b", "usb bus 1 device 4", "mdev c2177883-f1bb-47f0-914d-32a22e3a8804", "scsi scsi_host0",
		"pci 0000:3b:02.3", "nvme pci 0000:02:00.0", "tpm", "serial /dev/ttyS0", "input /dev/input/event3",
	}
	if got := hostDevices(def); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("host devices %q", got)
	}
	if got := sharedDirectories(def); strings.Join(got, "|") != "/srv/share|/srv/old" {
		t.Errorf("shared directories %q", got)
	}
	var nics []string
	for _, n := range interfaces(def) {
		nics = append(nics, n.GetType()+" "+n.GetSource()+" "+n.GetMac())
	}
	if got := strings.Join(nics, "|"); got != "network default 52:54:00:00:00:01|bridge br-lan 52:54:00:00:00:02|direct eno1 52:54:00:00:00:03|"+
		"user  52:54:00:00:00:04|hostdev  52:54:00:00:00:05" {
		t.Errorf("interfaces %q", got)
	}
	list := []*debvisorv1.VMDisk{
		{Target: "vda", Type: "file", Device: "disk", Source: "/var/lib/libvirt/images/over.qcow2", Format: "qcow2", Cache: "none"},
		{Target: "vdb", Type: "block", Device: "disk", Source: "/dev/mapper/san-web", Format: "raw", Cache: "none", Shareable: true},
		{Target: "sda", Type: "block", Device: "lun", Source: "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4", Format: "raw"},
		{Target: "vdc", Type: "network", Device: "disk", Source: "vms/web-data", Format: "raw", StorageId: "rbd:10.0.0.1:6789/vms", Shared: true},
		{Target: "vdd", Type: "network", Device: "disk", Source: "iqn.2004-01.org.example:store/3", Format: "raw", StorageId: "iscsi:iqn.2004-01.org.example:store", Shared: true},
		{Target: "vde", Type: "volume", Device: "disk", Source: "default/scratch", Format: "raw"},
		{Target: "vdf", Type: "nvme", Device: "disk", Format: "raw"},
		{Target: "sdb", Type: "file", Device: "cdrom", Source: "/var/lib/libvirt/disks/install.iso", Format: "raw", ReadOnly: true},
		{Target: "sdc", Type: "file", Device: "cdrom", Format: "raw", ReadOnly: true},
	}
	byTarget := map[string]*debvisorv1.VMDisk{}
	for _, d := range disks(def) {
		byTarget[d.GetTarget()] = d
	}
	for _, w := range list {
		if got := byTarget[w.GetTarget()]; !proto.Equal(got, w) {
			t.Errorf("disk %v, want %v", got, w)
		}
	}
	if len(byTarget) != len(list) {
		t.Errorf("%d disks", len(byTarget))
	}
}

func TestARunningGuestsOverlayTellsItsBackingFile(t *testing.T) {
	for _, d := range disks(recorded(t, "several.xml")) {
		want := map[string]string{"vda": "/var/lib/libvirt/images/base.qcow2"}[d.GetTarget()]
		if d.GetBackingFile() != want {
			t.Errorf("%s is an overlay of %q, want %q", d.GetTarget(), d.GetBackingFile(), want)
		}
	}
}

func TestWhatAGuestNeedsOfACPU(t *testing.T) {
	host := &libvirtxml.DomainCPU{Model: &libvirtxml.DomainCPUModel{Value: "EPYC"}, Features: []libvirtxml.DomainCPUFeature{{Policy: "require", Name: "vaes"}}}
	describe := func(def libvirtxml.Domain, active bool, host *libvirtxml.DomainCPU) *agentv1.CPUDescription {
		t.Helper()
		d, err := describeCPU(def, active, host)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	spelt := describe(recorded(t, "several-migratable.xml"), true, host)
	if !strings.Contains(spelt.GetXml(), ">EPYC<") || !strings.Contains(spelt.GetXml(), `policy="disable" name="pku"`) || spelt.GetArch() != "x86_64" || spelt.GetVirtType() != "qemu" || len(spelt.GetHash()) != 64 {
		t.Errorf("a running host-model: %v", spelt)
	}
	whole := describe(recorded(t, "maximal-migratable.xml"), true, host)
	if !strings.Contains(whole.GetXml(), `mode="maximum"`) || !strings.Contains(whole.GetXml(), `name="vaes"`) || strings.Contains(whole.GetXml(), "pku") {
		t.Errorf("a running guest that has all of its host: %v", whole)
	}
	unknown := describe(recorded(t, "maximal-migratable.xml"), true, nil)
	if _, _, err := inLibvirtsTerms(unknown); unknown.GetHash() == whole.GetHash() || err == nil {
		t.Errorf("its host's CPU is not known: %v, %v", unknown, err)
	}
	everything := recorded(t, "everything.xml") // shut off
	if d := describe(everything, false, host); d != nil {
		t.Errorf("a guest that is shut off and takes what it gets: %v", d)
	}
	custom := recorded(t, "several-migratable.xml")
	custom.CPU.Topology = &libvirtxml.DomainCPUTopology{Sockets: 2}
	custom.CPU.Features[0], custom.CPU.Features[1] = custom.CPU.Features[1], custom.CPU.Features[0]
	if d := describe(custom, false, host); d.GetHash() != spelt.GetHash() {
		t.Errorf("the same CPU in another order, with a topology: %v", d)
	}
	custom.Type = "kvm"
	if d := describe(custom, false, host); d.GetHash() == spelt.GetHash() {
		t.Error("another type of domain has the same hash")
	}
	for _, none := range []*libvirtxml.DomainCPU{nil, {}, {Topology: &libvirtxml.DomainCPUTopology{Sockets: 2}}} {
		if d := describe(libvirtxml.Domain{CPU: none}, true, host); d != nil {
			t.Errorf("out of %v: %v", none, d)
		}
	}
}

func TestOneLine(t *testing.T) {
	for words, want := range map[string]string{
		"the CPU is incompatible with host CPU: Host CPU does not provide required features: avx512f,\n avx512dq": "Host CPU does not provide required features: avx512f, avx512dq",
		"internal error: Unknown CPU model Nonesuch":                                                              "Unknown CPU model Nonesuch",
	} {
		if got := oneLine(words); got != want {
			t.Errorf("%q", got)
		}
	}
	if got := oneLine(strings.Repeat("é", maxDetail)); len(got) > maxDetail || !strings.HasSuffix(got, "é…") {
		t.Errorf("%d bytes: …%q", len(got), got[len(got)-8:])
	}
}

func FuzzDefinition(f *testing.F) {
	for _, name := range []string{"everything.xml", "several.xml", "maximal-migratable.xml"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add(`<domain type='kvm'><devices><hostdev mode='subsystem' type='pci'/><interface type='hostdev'/><filesystem type='mount'/><disk type='nvme'/></devices></domain>`)
	f.Fuzz(func(t *testing.T, text string) {
		var def libvirtxml.Domain
		if def.Unmarshal(text) != nil {
			return
		}
		out := &agentv1.Domain{
			Disks: disks(def), Interfaces: interfaces(def), HostDevices: hostDevices(def), SharedDirectories: sharedDirectories(def),
			MemoryBytes: memoryBytes(def), Vcpus: vcpus(def),
		}
		if _, err := proto.Marshal(out); err != nil {
			t.Fatal(err)
		}
		for _, active := range []bool{true, false} {
			if d, err := describeCPU(def, active, nil); err == nil && d != nil {
				_, _, _ = inLibvirtsTerms(d)
			}
		}
	})
}
