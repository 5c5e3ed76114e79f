package migration

import (
	"context"
	"errors"
	"slices"
	"strings"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Images is what is asked of the host's Ceph (rbd.Client). Its calls end with
// their context, and by themselves where Ceph is dead.
type Images interface {
	Inventory(ctx context.Context) (*agentv1.CephInventory, error)
	// Image looks at one image; NotFound: there is none.
	Image(ctx context.Context, id *agentv1.RbdImageID, watchers bool) (*agentv1.RbdImage, []*agentv1.RbdSnapshot, error)
}

const (
	typeNetwork = "network"

	// codeNoLock is known of an image that two hosts could write to at once.
	codeNoLock    = "IMAGE_NO_EXCLUSIVE_LOCK"
	exclusiveLock = "exclusive-lock"
)

// checkImage tells why an image of RBD cannot be had here: this host sees another
// cluster, or no such image, or nothing keeps two writers apart. Nothing is copied
// of an image: QEMU here takes its exclusive lock over from the source's.
func checkImage(ctx context.Context, images Images, d *agentv1.DiskTransfer) error {
	if images == nil {
		return diskError(codeDiskMissing, d, "this host has no Ceph")
	}
	ceph, err := images.Inventory(ctx)
	if err != nil {
		return imageError(d, err)
	}
	if ceph.GetFsid() != d.GetCephFsid() {
		return diskError(codeDiskMissing, d, "%s is in the Ceph cluster %s, and this host is a client of %s", d.GetPath(), d.GetCephFsid(), ceph.GetFsid())
	}
	image, _, err := images.Image(ctx, imageOf(d.GetPath()), false)
	if err != nil {
		return imageError(d, err)
	}
	if !d.GetReadOnly() && !slices.Contains(image.GetFeatures(), exclusiveLock) {
		return diskError(codeNoLock, d, "%s is without the feature %s (rbd feature enable %s %s): nothing would keep two hosts from writing to it",
			d.GetPath(), exclusiveLock, d.GetPath(), exclusiveLock)
	}
	return nil
}

// imageOf reads pool/image or pool/namespace/image, as libvirt writes it.
func imageOf(path string) *agentv1.RbdImageID {
	pool, name, _ := strings.Cut(path, "/")
	id := &agentv1.RbdImageID{Pool: pool, Name: name}
	if namespace, image, in := strings.Cut(name, "/"); in {
		id.Namespace, id.Name = namespace, image
	}
	return id
}

// imageError names the disk, and keeps the code that Ceph's error has.
func imageError(d *agentv1.DiskTransfer, err error) error {
	var known *errdefs.Error
	if !errors.As(err, &known) {
		return diskError(codeDisk, d, "%v", err)
	}
	return diskError(known.Code, d, "%s: %v", d.GetPath(), err)
}
