package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"libvirt.org/go/libvirt"
)

// A GuestSpec says what guest to make. Zero values mean the default in parentheses.
type GuestSpec struct {
	Name      string        // of the VM
	UUID      string        // (a new one)
	MemoryMiB int           // (128)
	Disks     []DiskSpec    // the first takes the counter, the others that are no media the same in step (one, shared)
	Period    time.Duration // between two values of the counter (50 ms)
	DirtyKiB  int           // memory written in each period, which makes a live migration longer (0)
	DirtyRoom int           // MiB that DirtyKiB goes round in (48)
	KeptPages int           // pages of memory that all hold the last value, which the guest checks: see Trouble (64)
	Deaf      bool          // takes no notice of its power button, so it does not shut down when asked
	CPU       string        // model (qemu64)
	Agent     bool          // with the QEMU guest agent and a file system in memory; its counter stands still while it is frozen
	Devices   string        // further devices, in libvirt's XML
}

// A Guest is a VM that writes a growing counter to its disk and says it on its console.
type Guest struct {
	Name string
	UUID string

	Disks []Disk

	lab        *Lab
	console    *console
	definition string
}

// withDefaults returns the spec with its defaults filled in.
func (s GuestSpec) withDefaults() GuestSpec {
	if s.UUID == "" {
		s.UUID = uuid.NewString()
	}
	if s.MemoryMiB == 0 {
		s.MemoryMiB = 128
	}
	if len(s.Disks) == 0 {
		s.Disks = []DiskSpec{{}}
	}
	if s.DirtyRoom == 0 {
		s.DirtyRoom = 48
	}
	if s.KeptPages == 0 {
		s.KeptPages = 64
	}
	if s.CPU == "" {
		s.CPU = "qemu64"
	}
	if s.Period == 0 {
		s.Period = 50 * time.Millisecond
	}
	return s
}

// StartGuest makes a guest's disks, defines and starts it on the node as an operator would, past our daemons, and waits until
// its counter runs.
func (n *Node) StartGuest(ctx context.Context, s GuestSpec) (*Guest, error) {
	g, err := n.DefineGuest(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := n.Boot(g.UUID); err != nil {
		return nil, fmt.Errorf("start guest %s on %s: %w", s.Name, n.Name, err)
	}
	return g, g.Ticks(ctx)
}

// Ticks waits until the guest's counter says another value.
func (g *Guest) Ticks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	begin := len(g.Console())
	return Eventually(ctx, "guest "+g.Name+" ticks", func() error {
		if lines := g.Console(); len(lines) == begin {
			return fmt.Errorf("its console is silent; %s", g.ConsoleText())
		}
		return nil
	})
}

// DefineGuest is StartGuest without the start.
func (n *Node) DefineGuest(ctx context.Context, s GuestSpec) (*Guest, error) {
	s = s.withDefaults()
	g := &Guest{Name: s.Name, UUID: s.UUID, Disks: n.lab.disksOf(s), lab: n.lab}
	for _, d := range g.Disks {
		if err := d.make(ctx, n); err != nil {
			return nil, fmt.Errorf("disk %s of %s: %w", d.Target, s.Name, err)
		}
	}
	var err error
	if g.console, err = n.lab.watchConsole(filepath.Join(n.lab.shared(), s.Name+".console")); err != nil {
		return nil, err
	}
	g.definition = g.xml(s)
	if err := n.Define(g.definition); err != nil {
		return nil, fmt.Errorf("define guest %s on %s: %w", s.Name, n.Name, err)
	}
	return g, nil
}

// Define gives the node's libvirt a definition, past our daemons.
func (n *Node) Define(xml string) error {
	conn, err := n.Connect()
	if err != nil {
		return err
	}
	defer func() { _, _ = conn.Close() }()
	dom, err := conn.DomainDefineXML(xml)
	if err != nil {
		return err
	}
	return dom.Free()
}

// Boot starts a VM that is defined on the node, past our daemons.
func (n *Node) Boot(vm string) error {
	return n.withDomain(vm, func(dom *libvirt.Domain) error { return dom.Create() })
}

// Destroy ends a VM that runs on the node at once, past our daemons.
func (n *Node) Destroy(vm string) error {
	return n.withDomain(vm, func(dom *libvirt.Domain) error { return dom.Destroy() })
}

// Resume lets a paused VM go on, past our daemons.
func (n *Node) Resume(vm string) error { return n.withDomain(vm, (*libvirt.Domain).Resume) }

// Undefine takes a VM's definition off the node, past our daemons.
func (n *Node) Undefine(vm string) error {
	return n.withDomain(vm, func(dom *libvirt.Domain) error { return dom.Undefine() })
}

// xml is the definition. The console's file is in the shared directory and is appended to by whichever QEMU runs.
func (g *Guest) xml(s GuestSpec) string {
	var disks strings.Builder
	writable, deaf := 0, 0
	for _, d := range g.Disks {
		disks.WriteString(d.xml())
		if !d.Media {
			writable++
		}
	}
	if s.Deaf {
		deaf = 1
	}
	initramfs, agent := "initramfs", ""
	if s.Agent {
		initramfs, agent = "initramfs-agent", " tick.agent=1"
		s.Devices += `
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>`
	}
	return fmt.Sprintf(`<domain type='qemu'>
  <name>%[1]s</name>
  <uuid>%[2]s</uuid>
  <memory unit='MiB'>%[3]d</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <kernel>%[4]s/vmlinuz</kernel>
    <initrd>%[4]s/%[14]s</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 mitigations=off tick.ms=%[5]d tick.dirty=%[6]d tick.room=%[7]d tick.disks=%[8]d tick.deaf=%[9]d tick.kept=%[13]d%[15]s</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact'><model fallback='forbid'>%[10]s</model></cpu>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
%[11]s    <serial type='file'><source path='%[4]s/%[1]s.console' append='on'/><target port='0'/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    %[12]s
  </devices>
</domain>`, s.Name, s.UUID, s.MemoryMiB, images, s.Period.Milliseconds(), s.DirtyKiB, s.DirtyRoom, writable, deaf, s.CPU,
		disks.String(), s.Devices, s.KeptPages, initramfs, agent)
}

// StartTwin starts the guest on a second node as well, as nobody should: with local disks made anew there, past our daemons.
func (g *Guest) StartTwin(ctx context.Context, n *Node) error {
	for _, d := range g.Disks {
		if err := d.make(ctx, n); err != nil {
			return err
		}
	}
	if err := n.Define(g.definition); err != nil {
		return err
	}
	return n.Boot(g.UUID)
}
