package cluster

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// How deep clones may stand one above the other. One that is made deeper than
// SoftCloneDepth is flattened in the background; one that would be deeper than
// HardCloneDepth is not made: every read of what no clone has written goes down
// the whole chain.
const (
	SoftCloneDepth = 4
	HardCloneDepth = 8
)

// maxRBDName bounds the parts of RBD's names, bytes.
const maxRBDName = 255

// rbdOurs begins the names of images that an agent is still at work on.
const rbdOurs = ".dv-"

// RBDImage gives the image that a caller named in two parts: a pool, and a name
// that is "image", or "namespace/image". InvalidArgument, naming the field below
// field, for what would lead elsewhere than it says or read as a snapshot or an
// option.
func RBDImage(field, pool, name string) (*agentv1.RbdImageID, error) {
	if err := RBDPool(field+".pool", pool); err != nil {
		return nil, err
	}
	namespace, image, in := strings.Cut(name, "/")
	if !in {
		namespace, image = "", name
	}
	if in {
		if err := RBDNamespace(field+".name", namespace); err != nil {
			return nil, err
		}
	}
	if err := rbdPart(field+".name", name, image, `an image, or "namespace/image"; `); err != nil {
		return nil, err
	}
	if strings.HasPrefix(image, rbdOurs) {
		return nil, errdefs.Field(field+".name", clip(name), `an image whose name does not begin with "`+rbdOurs+`"`)
	}
	return &agentv1.RbdImageID{Pool: pool, Namespace: namespace, Name: image}, nil
}

// RBDPool checks the name of a pool.
func RBDPool(field, pool string) error { return rbdPart(field, pool, pool, "a pool; ") }

// RBDNamespace checks the name of a namespace.
func RBDNamespace(field, namespace string) error {
	return rbdPart(field, namespace, namespace, "a namespace; ")
}

// RBDSnapshot checks the name of a snapshot, what follows the "@".
func RBDSnapshot(field, name string) error { return rbdPart(field, name, name, "a snapshot; ") }

// rbdPart checks one part of a name.
func rbdPart(field, whole, part, what string) error {
	const accepted = `letters, digits and "-", "_", ".", ":", "+", "=", "~", blanks between, not ".", ".." or a "-" first, at most 255 bytes`
	bad := part == "" || part == "." || part == ".." || part[0] == '-' || strings.TrimSpace(part) != part || len(part) > maxRBDName
	for _, r := range part {
		plain := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.:+=~ ", r)
		bad = bad || !plain
	}
	if bad {
		return errdefs.Field(field, clip(whole), what+accepted)
	}
	return nil
}

// RBDPath writes an image's full name: pool/image, or pool/namespace/image.
func RBDPath(id *agentv1.RbdImageID) string { return id.GetPool() + "/" + RBDName(id) }

// RBDName writes what is below the pool: image, or namespace/image.
func RBDName(id *agentv1.RbdImageID) string {
	if id.GetNamespace() == "" {
		return id.GetName()
	}
	return id.GetNamespace() + "/" + id.GetName()
}

// RBDSnapshotPath writes a snapshot's full name.
func RBDSnapshotPath(id *agentv1.RbdSnapshotID) string {
	return RBDPath(id.GetImage()) + "@" + id.GetName()
}

// RBDResource is what an operation holds in use of an image, and what an agent
// locks. The namespace is empty for the default one, so that no image is taken
// for one of a namespace.
func RBDResource(fsid string, id *agentv1.RbdImageID) string {
	return "rbd/" + fsid + "/" + id.GetPool() + "/" + id.GetNamespace() + "/" + id.GetName()
}

// RBDFlattenResource is what a flatten holds: snapshots of the image are taken
// and removed meanwhile, and only its end is not.
func RBDFlattenResource(fsid string, id *agentv1.RbdImageID) string {
	return "rbd-flatten/" + strings.TrimPrefix(RBDResource(fsid, id), "rbd/")
}

// RBDOfDisk gives the full name, as RBDPath writes it, of the image that is a
// VM's disk; "": it is none.
func RBDOfDisk(disk *debvisorv1.VMDisk) string {
	if disk.GetType() != "network" || !strings.HasPrefix(disk.GetStorageId(), "rbd:") {
		return ""
	}
	return disk.GetSource()
}

// RBDOfDiskIn is RBDOfDisk for one Ceph cluster: of a disk that is known to be in
// another it gives "".
func RBDOfDiskIn(fsid string, disk *debvisorv1.VMDisk) string {
	if in, _ := RBDClusterOfDisk(disk); in != "" && in != fsid {
		return ""
	}
	return RBDOfDisk(disk)
}

// idAlphabet is that of all operations' ids.
const idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// FollowUp is the id of the operation of a kind that another has begun at its
// end: the same whoever asks.
func FollowUp(operation, kind string) string {
	sum := sha256.Sum256([]byte(operation + "\x00" + kind))
	return "op-" + base32.NewEncoding(idAlphabet).EncodeToString(sum[:])[:26]
}
