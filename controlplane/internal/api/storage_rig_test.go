package api_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// zfsNodes stand for agents that are asked about ZFS: they answer in parts from
// what tests say is there.
type zfsNodes struct {
	mu     sync.Mutex
	nodes  map[string]*agentv1.ZfsListing
	silent map[string]bool
	tokens map[string]*agentv1.ZfsSendEstimate
	asked  []string
	txg    uint64
	// before, unless nil, is called before each answer.
	before func()
	// ceph is what is in the Ceph cluster of all; cephDown has the nodes that it does
	// not answer.
	ceph     *agentv1.RbdListing
	cephDown map[string]bool
}

func newZFSNodes() *zfsNodes {
	return &zfsNodes{nodes: map[string]*agentv1.ZfsListing{}, silent: map[string]bool{}, tokens: map[string]*agentv1.ZfsSendEstimate{}, ceph: &agentv1.RbdListing{}, cephDown: map[string]bool{}}
}

// dataset adds or replaces a dataset of a node, with snapshots of ours, each an
// hour younger than the one before.
func (z *zfsNodes) dataset(node string, d *agentv1.ZfsDataset, snapshots ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.nodes[node] == nil {
		z.nodes[node] = &agentv1.ZfsListing{}
	}
	all := z.nodes[node]
	all.Datasets = append(slices.DeleteFunc(all.GetDatasets(), func(o *agentv1.ZfsDataset) bool { return o.GetName() == d.GetName() }), d)
	for _, name := range snapshots {
		z.txg++
		all.Snapshots = append(all.Snapshots, &agentv1.ZfsSnapshot{
			Dataset: d.GetName(), Name: name, Guid: 1000 + z.txg, CreateTxg: z.txg, Created: 1767225600 + int64(z.txg)*3600, UsedBytes: 10,
			Operation: "op-of-" + name, Label: "label-" + name,
		})
	}
}

// change changes a snapshot.
func (z *zfsNodes) change(node, full string, by func(*agentv1.ZfsSnapshot)) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, s := range z.nodes[node].GetSnapshots() {
		if s.GetDataset()+"@"+s.GetName() == full {
			by(s)
		}
	}
}

// Ask answers as agents do.
func (z *zfsNodes) Ask(ctx context.Context, node string, q *agentv1.Ask, part func(*agentv1.Answer) error) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.before != nil {
		z.before()
	}
	all, ok := z.nodes[node]
	if !ok || z.silent[node] {
		return errdefs.New(errdefs.Unavailable, "NO_SESSION", "the agent of node %s is not heard", node)
	}
	if _, bounded := ctx.Deadline(); !bounded {
		return errdefs.New(errdefs.Internal, "TEST", "a question without an end")
	}
	z.asked = append(z.asked, node+" "+fmt.Sprint(q))
	switch {
	case q.GetListRbd() != nil:
		return z.listImages(node, q.GetListRbd(), part)
	case q.GetListZfs() != nil:
		return z.list(all, q.GetListZfs(), part)
	case q.GetEstimateZfsDestroy() != nil:
		return part(&agentv1.Answer{Answer: &agentv1.Answer_ZfsDestroyEstimate{ZfsDestroyEstimate: &agentv1.ZfsDestroyEstimate{
			Bytes: uint64(100 * len(q.GetEstimateZfsDestroy().GetSnapshots())),
		}}})
	}
	send := q.GetEstimateZfsSend()
	estimate := &agentv1.ZfsSendEstimate{Bytes: uint64(5000 + len(send.GetFrom()))}
	if send.GetToken() != "" {
		if estimate = z.tokens[send.GetToken()]; estimate == nil {
			return errdefs.New(errdefs.FailedPrecondition, "TOKEN_DEAD", "cannot resume")
		}
	}
	return part(&agentv1.Answer{Answer: &agentv1.Answer_ZfsSendEstimate{ZfsSendEstimate: estimate}})
}

// list answers in parts of one thing each.
func (z *zfsNodes) list(all *agentv1.ZfsListing, q *agentv1.ListZfs, part func(*agentv1.Answer) error) error {
	meant := func(name string) bool {
		return len(q.GetDatasets()) == 0 || slices.ContainsFunc(q.GetDatasets(), func(d string) bool {
			return name == d || q.GetRecursive() && strings.HasPrefix(name, d+"/")
		})
	}
	var parts []*agentv1.ZfsListing
	for _, d := range all.GetDatasets() {
		if meant(d.GetName()) {
			parts = append(parts, &agentv1.ZfsListing{Datasets: []*agentv1.ZfsDataset{d}})
		}
	}
	for _, s := range all.GetSnapshots() {
		if q.GetSnapshots() && meant(s.GetDataset()) {
			parts = append(parts, &agentv1.ZfsListing{Snapshots: []*agentv1.ZfsSnapshot{s}})
		}
	}
	for _, b := range all.GetBookmarks() {
		if q.GetBookmarks() && meant(b.GetDataset()) {
			parts = append(parts, &agentv1.ZfsListing{Bookmarks: []*agentv1.ZfsBookmark{b}})
		}
	}
	for i, p := range parts {
		if err := part(&agentv1.Answer{Answer: &agentv1.Answer_ZfsListing{ZfsListing: p}, More: i+1 < len(parts)}); err != nil {
			return err
		}
	}
	return nil
}

// reportZFS records what nodes have now, as their inventories tell it.
func (r *replica) reportZFS(nodes ...string) {
	r.t.Helper()
	for _, node := range nodes {
		r.zfs.mu.Lock()
		inventory := &agentv1.ZfsInventory{Version: "2.4.4", Datasets: slices.Clone(r.zfs.nodes[node].GetDatasets())}
		r.zfs.mu.Unlock()
		slices.SortFunc(inventory.GetDatasets(), func(a, b *agentv1.ZfsDataset) int { return cmp.Compare(a.GetName(), b.GetName()) })
		for _, d := range inventory.GetDatasets() {
			pool, _, _ := strings.Cut(d.GetName(), "/")
			if !slices.ContainsFunc(inventory.GetPools(), func(p *agentv1.ZfsPool) bool { return p.GetName() == pool }) {
				inventory.Pools = append(inventory.Pools, &agentv1.ZfsPool{Name: pool, Health: "ONLINE", SizeBytes: 100 << 30, FreeBytes: 60 << 30})
			}
		}
		r.put(store.PutProto(store.NodeZFSKey(node), &storev1.NodeZFS{Node: node, Inventory: encode(r.t, inventory), ReportedAt: timestamppb.Now()}))
	}
}
