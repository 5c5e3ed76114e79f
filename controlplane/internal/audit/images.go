package audit

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// systemStorage is the principal of what the controller of storage begins by
// itself: the flattening of deep clones.
const systemStorage = "system:storage"

// ofImages is what an operation on images of RBD is about; empty: it is none.
func ofImages(op *storev1.Operation) string {
	take, remove := op.GetTakeSnapshots(), op.GetRemoveSnapshots()
	switch {
	case len(take.GetImages()) > 0:
		return "images=" + imagesText(imageNames(take.GetImages())) + " name=" + take.GetName()
	case remove.GetFsid() != "":
		names := imageNames(remove.GetImages())
		for _, b := range remove.GetSnapshots() {
			id := &agentv1.RbdSnapshotID{}
			if proto.Unmarshal(b, id) == nil {
				names = append(names, cluster.RBDSnapshotPath(id))
			}
		}
		return "images=" + imagesText(names)
	case op.GetCloneImage() != nil:
		template := &agentv1.RbdSnapshotID{}
		if proto.Unmarshal(op.GetCloneImage().GetTemplate(), template) != nil {
			template.Reset()
		}
		return "template=" + cluster.RBDSnapshotPath(template) + " image=" + imagesText(imageNames([][]byte{op.GetCloneImage().GetImage()}))
	case op.GetChangeImage() != nil:
		return "image=" + imagesText(imageNames([][]byte{op.GetChangeImage().GetImage()}))
	}
	return ""
}

// imageNames are the full names of images of a record.
func imageNames(records [][]byte) []string {
	var names []string
	for _, b := range records {
		id := &agentv1.RbdImageID{}
		if proto.Unmarshal(b, id) == nil {
			names = append(names, cluster.RBDPath(id))
		}
	}
	return names
}

func imagesText(names []string) string {
	text := strings.Join(names[:min(len(names), mostDatasets)], ",")
	if more := len(names) - mostDatasets; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
