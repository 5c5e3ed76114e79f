package cluster

import (
	"regexp"
	"strings"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// fsid is what Ceph's ids of clusters look like.
var fsid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`) //nolint:gochecknoglobals // a constant

// RBDClusterOfDisk gives the fsid of the Ceph cluster with the image that is a VM's
// disk, and the image's pool; "": it is none, or its node does not know which
// cluster that is.
func RBDClusterOfDisk(disk *debvisorv1.VMDisk) (cluster, pool string) {
	if RBDOfDisk(disk) == "" {
		return "", ""
	}
	named, pool, _ := strings.Cut(strings.TrimPrefix(disk.GetStorageId(), "rbd:"), "/")
	if !fsid.MatchString(named) {
		return "", pool
	}
	return named, pool
}
