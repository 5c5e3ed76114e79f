package api

import (
	"cmp"
	"context"
	"encoding/base64"
	"maps"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// ListImages answers images of RBD, by pool, namespace and name, asked of a node
// now. Without any Ceph there are none.
func (s *storageService) ListImages(ctx context.Context, filter *debvisorv1.ImageFilter) (*debvisorv1.ImageList, error) {
	scope := scopeOf(ctx, s.view.Current())
	after, err := s.checkImageFilter(filter)
	if err != nil {
		return nil, err
	}
	node, err := findNode(scope.Snapshot(), filter.GetNode())
	if err != nil {
		return nil, err
	}
	var parent *image
	pool := filter.GetPool()
	if filter.GetParent() != nil {
		found, err := s.nameImage(scope, "parent", filter.GetParent())
		if err != nil {
			return nil, err
		}
		parent, node, pool = &found, cmp.Or(node, found.node), cmp.Or(pool, found.id.GetPool())
	}
	fsid, err := scope.Snapshot().CephWith("filter", node, pool)
	if errdefs.Is(err, errdefs.NotFound) {
		return &debvisorv1.ImageList{}, nil
	}
	if err != nil {
		return nil, err
	}
	q := &agentv1.ListRbd{Children: true, Images: []*agentv1.RbdImageID{{}}}
	if filter.GetPool() != "" && filter.GetNamespace() != "" {
		q.Images = []*agentv1.RbdImageID{{Pool: filter.GetPool(), Namespace: filter.GetNamespace()}}
	}
	listing, err := s.askCeph(ctx, scope, fsid, node, q)
	if err != nil {
		return nil, err
	}
	all := slices.DeleteFunc(listing.GetImages(), func(one *agentv1.RbdImage) bool {
		id := one.GetImage()
		return filter.GetPool() != "" && id.GetPool() != filter.GetPool() || filter.GetNamespace() != "" && id.GetNamespace() != filter.GetNamespace() ||
			parent != nil && cluster.RBDPath(one.GetParent().GetImage()) != parent.path() || s.own(scope, imageRef(id)) != nil ||
			after != nil && byImage(id, after) <= 0
	})
	slices.SortFunc(all, func(a, b *agentv1.RbdImage) int { return byImage(a.GetImage(), b.GetImage()) })
	limit, list, users := int(cmp.Or(filter.GetLimit(), snapshotsAPage)), &debvisorv1.ImageList{}, imageUsers(scope, scope, fsid)
	for i, one := range all {
		if i == limit {
			list.NextPage = imagePage(all[i-1].GetImage())
			break
		}
		list.Images = append(list.Images, s.imageMessage(scope, fsid, one, users))
	}
	return list, nil
}

// checkImageFilter checks names and reads the page; nil: the first.
func (s *storageService) checkImageFilter(filter *debvisorv1.ImageFilter) (*agentv1.RbdImageID, error) {
	if filter.GetPool() != "" {
		if err := cluster.RBDPool("pool", filter.GetPool()); err != nil {
			return nil, err
		}
	}
	if filter.GetNamespace() != "" {
		if err := cluster.RBDNamespace("namespace", filter.GetNamespace()); err != nil {
			return nil, err
		}
	}
	if filter.GetPage() == "" {
		return nil, nil //nolint:nilnil // the first page begins after nothing
	}
	text, err := base64.RawURLEncoding.DecodeString(filter.GetPage())
	parts := strings.Split(string(text), "\x00")
	if err != nil || len(parts) != 3 {
		return nil, errdefs.Field("page", clip(filter.GetPage()), "what the last answer's next_page said, or nothing")
	}
	return &agentv1.RbdImageID{Pool: parts[0], Namespace: parts[1], Name: parts[2]}, nil
}

// imagePage writes down after which image the next page begins.
func imagePage(id *agentv1.RbdImageID) string {
	return base64.RawURLEncoding.EncodeToString([]byte(id.GetPool() + "\x00" + id.GetNamespace() + "\x00" + id.GetName()))
}

// byImage orders images.
func byImage(a, b *agentv1.RbdImageID) int {
	return cmp.Or(cmp.Compare(a.GetPool(), b.GetPool()), cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
}

// imageMessage gives an image as the scope's callers may see it.
func (s *storageService) imageMessage(scope cluster.Scope, fsid string, one *agentv1.RbdImage, users map[string][]string) *debvisorv1.Image {
	m := &debvisorv1.Image{
		Ref: imageRef(one.GetImage()), Id: one.GetImage().GetId(), SizeBytes: one.GetSizeBytes(), CreatedAt: &debvisorv1.Timestamp{Seconds: one.GetCreated()},
		Features: one.GetFeatures(), Depth: one.GetDepth(), OperationId: one.GetOperation(), Vms: users[cluster.RBDPath(one.GetImage())],
	}
	if parent := one.GetParent(); parent != nil {
		m.Parent = cluster.RBDSnapshotPath(parent)
		if s.own(scope, imageRef(parent.GetImage())) != nil {
			m.Parent = hidden
		}
	}
	for _, child := range one.GetChildren() {
		if s.own(scope, imageRef(child)) == nil {
			m.Clones = append(m.Clones, imageRef(child))
		}
	}
	for _, resource := range []string{cluster.RBDFlattenResource(fsid, one.GetImage()), cluster.RBDResource(fsid, one.GetImage())} {
		if id, held := scope.Holder(resource); held {
			m.BusyOperationId = id
		}
	}
	return m
}

// listCeph adds the pools that a node has seen for RBD. A tenant's caller sees
// those in which it owns anything, without their sizes.
func (s *storageService) listCeph(scope cluster.Scope, node, pool string, list *debvisorv1.StorageList) {
	inventory, ok := scope.Snapshot().CephOf(node)
	if !ok {
		return
	}
	stale := inventory.GetError()
	if err := heardForStorage(scope.Snapshot(), node); stale == "" && err != nil {
		stale = "the agent of " + node + " is not heard"
	}
	for _, p := range inventory.GetPools() {
		if !p.GetRbd() || pool != "" && p.GetName() != pool || !s.hasStorage(scope, p.GetName()) {
			continue
		}
		m := &debvisorv1.StoragePool{
			Node: nodeRef(node), Backend: debvisorv1.StorageBackend_BACKEND_RBD, Name: p.GetName(), Health: inventory.GetHealth(),
			SizeBytes: p.GetUsedBytes() + p.GetFreeBytes(), FreeBytes: p.GetFreeBytes(), Version: inventory.GetVersion(), StaleBecause: stale,
		}
		if scope.Confined() {
			m.SizeBytes, m.FreeBytes, m.Health = 0, 0, ""
			if stale != "" {
				m.StaleBecause = "its node does not answer"
			}
		}
		list.Pools = append(list.Pools, m)
	}
}

// hasStorage tells whether the scope's tenant owns a pool of RBD, or anything in it.
func (s *storageService) hasStorage(scope cluster.Scope, pool string) bool {
	if !scope.Confined() {
		return true
	}
	for _, t := range s.authz.Tenants(scope.Snapshot()) {
		for _, own := range t.Value.GetStorage() {
			if t.Name == scope.Tenant() && own.GetBackend() == "rbd" && own.GetPool() == pool {
				return true
			}
		}
	}
	return false
}

// sortedNames are a set's.
func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
