package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
)

// images is where nodes see the directory that they share.
const images = "/var/lib/libvirt/images"

// A GuestSpec says what guest to make. Zero values mean the default in parentheses.
type GuestSpec struct {
	Name      string        // of the VM
	UUID      string        // (a new one)
	MemoryMiB int           // (128)
	DiskMiB   int           // size of the ring of records (16: 32768 records)
	Period    time.Duration // between two values of the counter (50 ms)
	DirtyKiB  int           // memory written in each period, which makes a live migration longer (0)
}

// A Guest is a VM that writes a growing counter to its disk and says it on its console.
type Guest struct {
	Name string
	UUID string

	disk    string // on the host
	console *console
}

// Spec returns the spec with its defaults filled in.
func (s GuestSpec) withDefaults() GuestSpec {
	if s.UUID == "" {
		s.UUID = uuid.NewString()
	}
	if s.MemoryMiB == 0 {
		s.MemoryMiB = 128
	}
	if s.DiskMiB == 0 {
		s.DiskMiB = 16
	}
	if s.Period == 0 {
		s.Period = 50 * time.Millisecond
	}
	return s
}

// StartGuest makes a guest's disk, defines and starts it on the node as an operator would, past our daemons, and waits until
// its counter runs.
func (n *Node) StartGuest(ctx context.Context, s GuestSpec) (*Guest, error) {
	s = s.withDefaults()
	g := &Guest{Name: s.Name, UUID: s.UUID, disk: filepath.Join(n.lab.shared(), s.Name+".raw")}
	disk, err := os.OpenFile(g.disk, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(disk.Truncate(int64(s.DiskMiB)<<20), disk.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("disk of %s: %w", s.Name, err)
	}
	if g.console, err = n.lab.watchConsole(filepath.Join(n.lab.shared(), s.Name+".console")); err != nil {
		return nil, err
	}
	if err := n.define(s); err != nil {
		return nil, fmt.Errorf("start guest %s on %s: %w", s.Name, n.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return g, Eventually(ctx, "guest "+s.Name+" ticks", func() error {
		if lines := g.Console(); len(lines) == 0 {
			return fmt.Errorf("its console is silent; %s", g.ConsoleText())
		}
		return nil
	})
}

func (n *Node) define(s GuestSpec) error {
	conn, err := n.Connect()
	if err != nil {
		return err
	}
	defer func() { _, _ = conn.Close() }()
	dom, err := conn.DomainDefineXML(s.xml())
	if err != nil {
		return err
	}
	defer func() { _ = dom.Free() }()
	return dom.Create()
}

// xml is the definition. The disk is a raw file of the shared directory, with cache='none' so that libvirt migrates it. The
// console file is in the same directory and is appended to by whichever QEMU runs.
func (s GuestSpec) xml() string {
	return fmt.Sprintf(`<domain type='qemu'>
  <name>%[1]s</name>
  <uuid>%[2]s</uuid>
  <memory unit='MiB'>%[3]d</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <kernel>%[4]s/vmlinuz</kernel>
    <initrd>%[4]s/initramfs</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 mitigations=off tick.ms=%[5]d tick.dirty=%[6]d</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='%[4]s/%[1]s.raw'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='%[4]s/%[1]s.console' append='on'/><target port='0'/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>`, s.Name, s.UUID, s.MemoryMiB, images, s.Period.Milliseconds(), s.DirtyKiB)
}
