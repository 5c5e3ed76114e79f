package api

import (
	"context"
	"encoding/base64"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/retention/facts"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// snapshotsAPage is how many snapshots an answer has where the caller does not
// say.
const snapshotsAPage = 1000

// ListSnapshots answers snapshots, oldest first, asked of the node now.
func (s *storageService) ListSnapshots(ctx context.Context, filter *debvisorv1.SnapshotFilter) (*debvisorv1.SnapshotList, error) {
	if _, err := path.Match(filter.GetPattern(), ""); err != nil {
		return nil, errdefs.Field("pattern", clip(filter.GetPattern()), `a pattern of * ? [a-z], such as "pre-*"`)
	}
	after, err := parsePage(filter.GetPage())
	if err != nil {
		return nil, err
	}
	scope := scopeOf(ctx, s.view.Current())
	if isImage(filter.GetDataset()) {
		return s.listImageSnapshots(ctx, scope, filter, after)
	}
	d, err := s.resolve(ctx, scope, "dataset", filter.GetDataset(), "list the snapshots")
	if err != nil {
		return nil, err
	}
	listing, err := s.listing(ctx, d.node, &agentv1.ListZfs{Datasets: []string{d.path}, Recursive: filter.GetRecursive(), Snapshots: true})
	if err != nil {
		return nil, err
	}
	copies := facts.Copies(listing)
	found := slices.DeleteFunc(listing.GetSnapshots(), func(one *agentv1.ZfsSnapshot) bool {
		return !filter.GetAll() && !facts.Ours(copies[one.GetDataset()], one) || !matches(filter.GetPattern(), one) ||
			after != nil && byAge(one, after) <= 0 || s.own(scope, datasetRef(d.node, one.GetDataset())) != nil
	})
	slices.SortFunc(found, byAge)
	limit := int(filter.GetLimit())
	if limit == 0 {
		limit = snapshotsAPage
	}
	list := &debvisorv1.SnapshotList{}
	for i, one := range found {
		if i == limit {
			list.NextPage = pageAfter(found[i-1])
			break
		}
		list.Snapshots = append(list.Snapshots, s.snapshotMessage(scope, d.node, one))
	}
	return list, nil
}

// GetSnapshot answers one snapshot, asked of the node now.
func (s *storageService) GetSnapshot(ctx context.Context, ref *debvisorv1.SnapshotRef) (*debvisorv1.Snapshot, error) {
	scope := scopeOf(ctx, s.view.Current())
	if isImage(ref.GetDataset()) {
		return s.getImageSnapshot(ctx, scope, ref)
	}
	d, err := s.resolve(ctx, scope, "dataset", ref.GetDataset(), "show the snapshots")
	if err != nil {
		return nil, err
	}
	if err := cluster.ZFSSnapshot("snapshot_name", d.path, ref.GetSnapshotName()); err != nil {
		return nil, err
	}
	listing, err := s.listing(ctx, d.node, &agentv1.ListZfs{Datasets: []string{d.path}, Snapshots: true})
	if err != nil {
		return nil, err
	}
	for _, one := range listing.GetSnapshots() {
		if one.GetDataset() == d.path && one.GetName() == ref.GetSnapshotName() {
			return s.snapshotMessage(scope, d.node, one), nil
		}
	}
	return nil, noSnapshot(d.node, fullName(d.path, ref.GetSnapshotName()))
}

func noSnapshot(node string, names ...string) error {
	return errdefs.New(errdefs.NotFound, "SNAPSHOT_NOT_FOUND", "node %s has no %s", node, clipTo(strings.Join(names, ", "), maxListText)).
		With("node", node).With("snapshots", clipTo(strings.Join(names, ","), maxChangesText))
}

// matches tells whether a pattern names a snapshot by its name or its label.
func matches(pattern string, one *agentv1.ZfsSnapshot) bool {
	if pattern == "" {
		return true
	}
	byName, _ := path.Match(pattern, one.GetName()) // it is well formed
	byLabel, _ := path.Match(pattern, one.GetLabel())
	return byName || byLabel && one.GetLabel() != ""
}

// pageAfter writes down where the next page begins: after which snapshot.
func pageAfter(one *agentv1.ZfsSnapshot) string {
	text := strings.Join([]string{
		strconv.FormatInt(one.GetCreated(), 10), strconv.FormatUint(one.GetCreateTxg(), 10), one.GetDataset(), one.GetName(),
	}, "\x00")
	return base64.RawURLEncoding.EncodeToString([]byte(text))
}

// parsePage reads that; nil for the first page.
func parsePage(page string) (*agentv1.ZfsSnapshot, error) {
	if page == "" {
		return nil, nil //nolint:nilnil // the first page begins after nothing
	}
	text, err := base64.RawURLEncoding.DecodeString(page)
	parts := strings.Split(string(text), "\x00")
	if err == nil && len(parts) == 4 {
		created, err := strconv.ParseInt(parts[0], 10, 64)
		txg, err2 := strconv.ParseUint(parts[1], 10, 64)
		if err == nil && err2 == nil {
			return &agentv1.ZfsSnapshot{Created: created, CreateTxg: txg, Dataset: parts[2], Name: parts[3]}, nil
		}
	}
	return nil, errdefs.Field("page", clip(page), "what the last answer's next_page said, or nothing")
}
