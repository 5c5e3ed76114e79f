package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// image is an image of RBD that a caller named.
type image struct {
	field string // of the request
	fsid  string
	// node is the one that was named; empty: any that sees the cluster will do.
	node string
	// id is with Ceph's own once the image was found.
	id        *agentv1.RbdImageID
	known     *agentv1.RbdImage
	snapshots []*agentv1.RbdSnapshot
}

func (i image) path() string { return cluster.RBDPath(i.id) }

// isImage tells whether a reference is one to an image of RBD.
func isImage(ref *debvisorv1.DatasetRef) bool {
	return ref.GetBackend() == debvisorv1.StorageBackend_BACKEND_RBD
}

// imageRef names an image as answers do. Which node has seen it says nothing of it.
func imageRef(id *agentv1.RbdImageID) *debvisorv1.DatasetRef {
	return &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_RBD, Pool: id.GetPool(), Name: cluster.RBDName(id)}
}

// nameImage checks what a caller calls an image, that it is the caller's, and
// which Ceph cluster is meant; whether it exists is not asked. Errors:
// InvalidArgument; NotFound; FailedPrecondition AMBIGUOUS_DATASET with the
// candidates.
func (s *storageService) nameImage(scope cluster.Scope, field string, ref *debvisorv1.DatasetRef) (image, error) {
	if !isImage(ref) {
		return image{}, errdefs.Field(field+".backend", ref.GetBackend().String(), "BACKEND_RBD: this is about images of RBD")
	}
	id, err := cluster.RBDImage(field, ref.GetPool(), ref.GetName())
	if err != nil {
		return image{}, err
	}
	if err := s.own(scope, ref); err != nil {
		return image{}, err
	}
	node, err := findNode(scope.Snapshot(), ref.GetNode())
	if err != nil {
		return image{}, err
	}
	fsid, err := scope.Snapshot().CephWith(field, node, id.GetPool())
	if errdefs.Is(err, errdefs.NotFound) {
		err = noDataset(ref) // as of an image that is not there
	}
	return image{field: field, fsid: fsid, node: node, id: id}, err
}

// findImage finds the image that a reference means, with its snapshots, asked of a
// node now. Errors are nameImage's and askCeph's, and NotFound.
func (s *storageService) findImage(ctx context.Context, scope cluster.Scope, field string, ref *debvisorv1.DatasetRef) (image, error) {
	found, err := s.findImages(ctx, scope, func(int) string { return field }, []*debvisorv1.DatasetRef{ref})
	if err != nil {
		return image{}, err
	}
	return found[0], nil
}

// findImages finds several images of one Ceph cluster, each once, by their names.
func (s *storageService) findImages(ctx context.Context, scope cluster.Scope, field func(i int) string, refs []*debvisorv1.DatasetRef) ([]image, error) {
	var all []image
	for i, ref := range refs {
		one, err := s.nameImage(scope, field(i), ref)
		if err != nil {
			return nil, err
		}
		if len(all) > 0 && one.fsid != all[0].fsid {
			return nil, errdefs.New(errdefs.FailedPrecondition, "SEVERAL_CLUSTERS", "%s and %s are in different Ceph clusters; name those of one", all[0].path(), one.path())
		}
		if !slices.ContainsFunc(all, func(o image) bool { return o.path() == one.path() }) {
			all = append(all, one)
		}
	}
	q := &agentv1.ListRbd{Snapshots: true, Children: true}
	for _, one := range all {
		q.Images = append(q.Images, one.id)
	}
	listing, err := s.askCeph(ctx, scope, all[0].fsid, all[0].node, q)
	if err != nil {
		return nil, err
	}
	for i := range all {
		for _, known := range listing.GetImages() {
			if cluster.RBDPath(known.GetImage()) == all[i].path() {
				all[i].known, all[i].id = known, known.GetImage()
			}
		}
		if all[i].known == nil {
			return nil, noDataset(imageRef(all[i].id))
		}
		for _, one := range listing.GetSnapshots() {
			if cluster.RBDPath(one.GetSnapshot().GetImage()) == all[i].path() {
				all[i].snapshots = append(all[i].snapshots, one)
			}
		}
	}
	slices.SortFunc(all, func(a, b image) int { return strings.Compare(a.path(), b.path()) })
	return all, nil
}

// maxAsked is how many nodes are asked about a Ceph cluster, one after the other.
const maxAsked = 3

// askCeph asks one node after the other about their Ceph cluster; where one is
// named, that alone. Errors: Unavailable CEPH_DOWN where none can be asked; that of
// the last that was.
func (s *storageService) askCeph(ctx context.Context, scope cluster.Scope, fsid, node string, q *agentv1.ListRbd) (*agentv1.RbdListing, error) {
	nodes, why := scope.Snapshot().CephNodes(fsid)
	if node != "" {
		nodes = []string{node}
	}
	err := error(errdefs.New(errdefs.Unavailable, "CEPH_DOWN", "nothing can be asked of Ceph: %s", why).With("cluster", fsid).WithRetry(5 * time.Second))
	for _, node := range nodes[:min(maxAsked, len(nodes))] {
		var listing *agentv1.RbdListing
		if listing, err = s.imageListing(ctx, node, q); err == nil || !errdefs.Is(err, errdefs.Unavailable) || ctx.Err() != nil {
			return listing, err
		}
	}
	return nil, err
}

// imageListing asks a node what there is in its Ceph cluster. What does not exist
// is left out.
func (s *storageService) imageListing(ctx context.Context, node string, q *agentv1.ListRbd) (*agentv1.RbdListing, error) {
	all := &agentv1.RbdListing{}
	err := s.ask(ctx, node, &agentv1.Ask{Question: &agentv1.Ask_ListRbd{ListRbd: q}}, func(a *agentv1.Answer) error {
		part := a.GetRbdListing()
		all.Images, all.Snapshots = append(all.Images, part.GetImages()...), append(all.Snapshots, part.GetSnapshots()...)
		if len(all.GetImages())+len(all.GetSnapshots()) > maxListed {
			return errdefs.New(errdefs.ResourceExhausted, "TOO_MANY_SNAPSHOTS", "there are more than %d of them; ask about fewer images", maxListed)
		}
		return nil
	})
	return all, err
}

// shownImage is an image's full name, unless it is another's.
func (s *storageService) shownImage(scope cluster.Scope, id *agentv1.RbdImageID) string {
	if s.own(scope, imageRef(id)) != nil {
		return hidden
	}
	return cluster.RBDPath(id)
}

// ownerOfImages is the tenant that all of some images belong to; empty: none.
func (s *storageService) ownerOfImages(snapshot *cluster.Snapshot, images ...*agentv1.RbdImageID) string {
	tenant := ""
	for i, id := range images {
		of := s.ownerOf(snapshot, debvisorv1.StorageBackend_BACKEND_RBD, id.GetPool(), cluster.RBDName(id))
		if i > 0 && of != tenant {
			return ""
		}
		tenant = of
	}
	return tenant
}

// plainly refuses what only datasets of ZFS have.
func plainly(field string, recursive bool) error {
	if recursive {
		return errdefs.Field(field, "true", "false for an image of RBD, which has none below it")
	}
	return nil
}

// imageNames are full names of images of a record.
func imageNames(records [][]byte) []string {
	var names []string
	for _, b := range records {
		names = append(names, cluster.RBDPath(decode(b, &agentv1.RbdImageID{})))
	}
	return names
}

// snapshotText writes a snapshot's full name.
func snapshotText(id *agentv1.RbdImageID, name string) string {
	return fmt.Sprintf("%s@%s", cluster.RBDPath(id), name)
}
