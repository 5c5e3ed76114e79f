package cluster

import (
	"regexp"
	"strings"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// maxZFSName bounds ZFS's names, bytes: a dataset's, and with it those of its
// snapshots and bookmarks, "@" or "#" included (ZFS_MAX_DATASET_NAME_LEN less
// the final 0).
const maxZFSName = 255

// ZFSPath gives the full name, pool/name, of a dataset that a caller named in
// two parts. InvalidArgument, naming the field below field, for what ZFS's
// grammar does not have (zfs(8), zpoolconcepts(7)); so that no name leads
// elsewhere than it says, and none reads as a snapshot, a bookmark or an option.
func ZFSPath(field, pool, name string) (string, error) {
	if err := zfsPool(field+".pool", pool); err != nil {
		return "", err
	}
	if err := zfsParts(field+".name", name); err != nil {
		return "", err
	}
	path := pool + "/" + name
	if len(path) > maxZFSName {
		return "", errdefs.Field(field+".name", clip(name), "a dataset of at most 255 bytes with its pool")
	}
	return path, nil
}

// ZFSDataset checks a full name: a pool, or a dataset in one.
func ZFSDataset(field, path string) error {
	pool, name, below := strings.Cut(path, "/")
	if err := zfsPool(field, pool); err != nil || !below {
		return err
	}
	if len(path) > maxZFSName {
		return errdefs.Field(field, clip(path), "at most 255 bytes")
	}
	return zfsParts(field, name)
}

// ZFSSnapshot checks the name of a snapshot, what follows the "@", for a dataset.
func ZFSSnapshot(field, dataset, name string) error {
	if err := zfsPart(field, name, name); err != nil {
		return err
	}
	if len(dataset)+1+len(name) > maxZFSName {
		return errdefs.Field(field, clip(name), "dataset@name of at most 255 bytes")
	}
	return nil
}

func zfsPool(field, pool string) error {
	if err := zfsPart(field, pool, pool); err != nil {
		return err
	}
	if first := pool[0] | 0x20; first < 'a' || first > 'z' || strings.Contains(pool, "/") {
		return errdefs.Field(field, clip(pool), "a pool's name, which begins with a letter")
	}
	return nil
}

func zfsParts(field, name string) error {
	for part := range strings.SplitSeq(name, "/") {
		if err := zfsPart(field, name, part); err != nil {
			return err
		}
	}
	return nil
}

// zfsPart checks one part of a name: letters, digits, and - _ . : or blanks
// between; one with a "-" first would be read as an option.
func zfsPart(field, whole, part string) error {
	const accepted = `parts of letters, digits and "-", "_", ".", ":", none of them empty, "." or ".." or with a "-" first`
	bad := part == "" || part == "." || part == ".." || part[0] == '-' || strings.TrimSpace(part) != part || len(part) > maxZFSName
	for _, r := range part {
		plain := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.: ", r)
		bad = bad || !plain
	}
	if bad {
		return errdefs.Field(field, clip(whole), accepted)
	}
	return nil
}

// clip shortens a name that a caller sent, so that it can be repeated.
func clip(s string) string {
	if len(s) <= 64 {
		return s
	}
	return strings.ToValidUTF8(s[:64], "") + "…"
}

// SnapshotName is what the snapshots of an operation are called, on every
// dataset: dv-20261122T133000Z-<the last 8 of the operation's id>. It is decided
// when the operation is written, never later, so that whoever does it again
// finds what was done.
func SnapshotName(operation string, at time.Time) string {
	return "dv-" + at.UTC().Format("20060102T150405Z") + "-" + operation[max(0, len(operation)-8):]
}

// SnapshotNameLength is how long such a name is, with its "@".
const SnapshotNameLength = 1 + 28

var ourName = regexp.MustCompile(`^dv-[0-9]{8}T[0-9]{6}Z-[0-9a-z]{8}$`) //nolint:gochecknoglobals // constant

// OurSnapshotName tells whether a snapshot's name has our form. It is ours for
// sure only where its properties say so: names are all that copies keep.
func OurSnapshotName(name string) bool { return ourName.MatchString(name) }

// ZFSResource is what an operation holds in use of a dataset, pool/path.
func ZFSResource(node, dataset string) string { return "zfs/" + node + "/" + dataset }

// ReplicationResource is what a run of a replication job holds in use.
func ReplicationResource(job string) string { return "replication/" + job }

// CopyResource is what a replication holds in use of its target.
func CopyResource(node, dataset string) string { return "zfs-copy/" + node + "/" + dataset }
