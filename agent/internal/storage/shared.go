package storage

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// SharedDir is a directory that the operator says other nodes see too, under
// the same path.
type SharedDir struct {
	Path string
	// ID is the same on two nodes only where both see the same files.
	ID string
}

var (
	declaredID   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$`)
	acceptedDirs = "PATH or PATH=ID: an absolute path other than /, given once, and an id of 1-128 letters, digits and ._:/- that does not begin with local:"
)

// ParseSharedDirs reads PATH[=ID] of each; without an ID it is "shared:PATH".
// Its errors are InvalidArgument.
func ParseSharedDirs(texts []string) ([]SharedDir, error) {
	var dirs []SharedDir
	for _, text := range texts {
		dir, id, given := strings.Cut(text, "=")
		d := SharedDir{Path: path.Clean(dir), ID: id}
		if !given {
			d.ID = "shared:" + d.Path
		}
		again := slices.ContainsFunc(dirs, func(o SharedDir) bool { return o.Path == d.Path })
		bad := given && (!declaredID.MatchString(id) || strings.HasPrefix(id, localPrefix))
		if !path.IsAbs(dir) || d.Path == "/" || strings.ContainsFunc(dir, unprintable) || bad || again {
			return nil, errdefs.Field("shared-dir", text, acceptedDirs)
		}
		dirs = append(dirs, d)
	}
	return dirs, nil
}

func unprintable(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }

// localPrefix begins the storage ids of what one node alone sees.
const localPrefix = "local:"

// networkTypes are the file systems whose files other hosts see too: those that
// libvirt 9.0 lets a guest migrate on (nfs, gfs2, ocfs2, afs, smb, cifs, ceph,
// gpfs, glusterfs, quobyte, acfs; src/util/virfile.c), and others of the kind,
// where libvirt refuses but a copy onto itself would destroy the disk.
var networkTypes = []string{
	"nfs", "nfs4", "gfs2", "ocfs2", "afs", "smbfs", "cifs", "smb3", "ceph", "gpfs", "acfs", "beegfs", "lustre", "pvfs2", "orangefs",
	"glusterfs", "9p", "virtiofs", "coda",
}

// localFuse are those of fuse's subtypes that are no network file systems; of
// all others that is assumed.
var localFuse = []string{"fuse.fuse-overlayfs", "fuse.ntfs-3g", "fuse.ntfs", "fuse.exfat", "fuse.zfs", "fuse.mergerfs", "fuse.gocryptfs", "fuse.encfs", "fuseblk"}

func networked(kind string) bool {
	if slices.Contains(networkTypes, kind) {
		return true
	}
	return (kind == "fuse" || strings.HasPrefix(kind, "fuse.")) && !slices.Contains(localFuse, kind)
}

// clustered are file systems on a block device that several hosts share: the
// device's name is each host's own.
var clustered = []string{"gfs2", "ocfs2", "acfs"}

// pseudo are the file systems that never hold a disk.
var pseudo = []string{
	"proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs", "configfs", "pstore", "efivarfs", "bpf",
	"mqueue", "hugetlbfs", "autofs", "binfmt_misc", "fusectl", "rpc_pipefs", "nfsd", "nsfs", "selinuxfs", "squashfs", "overlay", "ramfs",
	"fuse.lxcfs", "fuse.gvfsd-fuse", "fuse.portal", "fuse.snapfuse", "iso9660", "udf",
}

// holdsDisks tells whether a disk may lie on the mount: not on what the kernel
// makes up, nor on the memory that a system keeps its own state in.
func holdsDisks(m mount) bool {
	if slices.Contains(pseudo, m.kind) {
		return false
	}
	if m.kind != "tmpfs" {
		return true
	}
	return !slices.ContainsFunc([]string{"/run", "/dev", "/sys", "/proc"}, func(dir string) bool { return under(m.point, dir) })
}

var cephUser = regexp.MustCompile(`^[^@/]+@([0-9a-f-]*\.[^=/]+=)`)

// sharedID names what a network mount shows, the same on every host that
// mounts it so. Where the source names nothing outside of this host (a tag, a
// word such as ceph-fuse) no other host has the same: an operator may declare it.
func sharedID(m mount, node string, uuidOf func(device string) string) string {
	source := m.source
	if !strings.ContainsAny(source, ":/") {
		source += "@" + node
	}
	switch {
	case slices.Contains(clustered, m.kind):
		if id := uuidOf(m.source); id != "" {
			source = id
		}
	case m.kind == "ceph":
		source = cephSource(source)
	}
	if m.root != "/" { // a part of it, mounted once more
		source = strings.TrimSuffix(source, "/") + m.root
	}
	return m.kind + ":" + source
}

// cephSource leaves out whose key was used, and orders the monitors: both may
// differ from host to host.
func cephSource(source string) string {
	source = cephUser.ReplaceAllString(source, "$1")
	i := strings.Index(source, ":/")
	if i < 0 {
		return source
	}
	monitors := strings.Split(source[:i], ",")
	slices.Sort(monitors)
	return strings.Join(monitors, ",") + source[i:]
}
