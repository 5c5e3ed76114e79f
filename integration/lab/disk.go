package lab

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Where nodes see the directory that they share, and their own directories of disks and of block devices. The latter two have the
// same path on every node, and other contents.
const (
	images  = "/var/lib/libvirt/images"
	disks   = "/var/lib/libvirt/disks"
	devices = "/var/lib/libvirt/devices"
)

// SharedDir is the directory that all nodes see.
const SharedDir = images

// A DiskKind is where a disk is.
type DiskKind string

// The kinds of disks.
const (
	DiskShared DiskKind = ""       // a file of the directory that the nodes share
	DiskLocal  DiskKind = "local"  // a file of the node's own, at the same path on every node
	DiskDevice DiskKind = "device" // a block device of the node's own, at the same path on every node
	DiskRBD    DiskKind = "rbd"    // an image of the lab's Ceph; raw
	DiskZvol   DiskKind = "zvol"   // a volume of a machine's pool; machines have this and DiskLocal, raw
)

// A DiskSpec says what disk a guest has. Zero values mean the default in parentheses.
type DiskSpec struct {
	Kind   DiskKind // (DiskShared)
	Format string   // raw or qcow2 (raw)
	MiB    int      // (16: a ring of 32768 records)
	// Media makes it a CD-ROM that the guest never reads, with random contents, instead of a disk that it writes its counter to.
	Media bool
	Pool  string // of DiskRBD: pool, or pool/namespace, where the image is made (the cluster's first)
	Image string // of DiskRBD: one that is there already, with its pool; none is made
	// Over makes a qcow2 file an overlay of another, empty one beside it, and the definition says so.
	Over bool
}

// A Disk is a disk of a guest.
type Disk struct {
	DiskSpec
	Target string // the guest's name of it: vda, vdb… and sda, sdb… of media
	Path   string // as the nodes see it

	lab *Lab
}

// disksOf gives the disks of a spec, named after the guest.
func (l *Lab) disksOf(s GuestSpec) []Disk {
	writable, media := 0, 0
	all := make([]Disk, 0, len(s.Disks))
	for _, spec := range s.Disks {
		d := Disk{DiskSpec: spec, lab: l}
		if d.Format == "" {
			d.Format = "raw"
		}
		if d.MiB == 0 {
			d.MiB = 16
		}
		suffix := d.Format
		if d.Media {
			d.Target = fmt.Sprintf("sd%c", 'a'+media)
			suffix = "iso"
			media++
		} else {
			d.Target = fmt.Sprintf("vd%c", 'a'+writable)
			writable++
		}
		switch name := s.Name + "-" + d.Target; {
		case d.Kind == DiskDevice:
			d.Path = filepath.Join(devices, name)
		case d.Kind == DiskRBD:
			if d.Path = d.Image; d.Path == "" {
				d.Path = cmp.Or(d.Pool, l.Ceph.Pools()[0]) + "/" + name
			}
		case d.Kind == DiskZvol:
			d.Path = "/dev/zvol/" + PoolName + "/" + name
		case d.Kind == DiskLocal:
			d.Path = filepath.Join(disks, name+"."+suffix)
		case d.Target == "vda" && suffix == "raw":
			d.Path = filepath.Join(images, s.Name+".raw")
		default:
			d.Path = filepath.Join(images, name+"."+suffix)
		}
		all = append(all, d)
	}
	return all
}

// On returns the path by which the host sees the disk of a node, which may be powered off. It sees none of a machine, and no image.
func (d Disk) On(n *Node) string {
	switch d.Kind {
	case DiskLocal:
		return filepath.Join(n.dir, "lib", "disks", filepath.Base(d.Path))
	case DiskDevice:
		return filepath.Join(n.dir, "lib", "devices", filepath.Base(d.Path))
	default:
		return filepath.Join(d.lab.shared(), filepath.Base(d.Path))
	}
}

// make makes the disk on a node. A block device is made on all nodes: nothing can make one by itself where a guest is to go.
func (d Disk) make(ctx context.Context, n *Node) error {
	if n.Machine != nil {
		return n.makeInMachine(ctx, d)
	}
	if d.Kind == DiskDevice {
		var failed []error
		for _, n := range d.lab.Nodes {
			file := filepath.Join(n.dir, "lib", filepath.Base(d.Path)+".device")
			failed = append(failed, d.file(file))
			failed = append(failed, attachLoop(file, d.On(n)))
		}
		return errors.Join(failed...)
	}
	if d.Kind == DiskRBD {
		return d.makeImage(ctx)
	}
	if d.Format == "raw" {
		return d.file(d.On(n))
	}
	create := []string{"qemu-img", "create", "-q", "-f", d.Format}
	if d.Over {
		base := d.Path + ".base"
		if _, err := n.Run(ctx, "qemu-img", "create", "-q", "-f", d.Format, base, fmt.Sprintf("%dM", d.MiB)); err != nil {
			return err
		}
		create = append(create, "-b", filepath.Base(base), "-F", d.Format)
	}
	_, err := n.Run(ctx, append(create, d.Path, fmt.Sprintf("%dM", d.MiB))...)
	return err
}

// file makes a raw file: sparse, but for media.
func (d Disk) file(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if !d.Media {
		return f.Truncate(int64(d.MiB) << 20)
	}
	contents := make([]byte, d.MiB<<20)
	if _, err := rand.Read(contents); err != nil {
		return err
	}
	_, err = f.Write(contents)
	return err
}

// xml is the disk's definition. With cache='none' libvirt migrates it.
func (d Disk) xml() string {
	kind, source, device, bus, access := "file", "file", "disk", "virtio", ""
	if d.Kind == DiskDevice || d.Kind == DiskZvol {
		kind, source = "block", "dev"
	}
	if d.Media {
		device, bus, access = "cdrom", "sata", "\n      <readonly/>"
	}
	if d.Over {
		access += fmt.Sprintf(`
      <backingStore type='file'><format type='%s'/><source file='%s'/><backingStore/></backingStore>`, d.Format, d.Path+".base")
	}
	source = fmt.Sprintf("<source %s='%s'/>", source, d.Path)
	if d.Kind == DiskRBD {
		kind, source = "network", d.cephSource()
	}
	return fmt.Sprintf(`    <disk type='%s' device='%s'>
      <driver name='qemu' type='%s' cache='none'/>
      %s
      <target dev='%s' bus='%s'/>%s
    </disk>
`, kind, device, d.Format, source, d.Target, bus, access)
}
