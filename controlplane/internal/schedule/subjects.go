package schedule

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// subject is one dataset that a policy is about.
type subject struct {
	node, dataset string
	// known is as the node last reported it; nil: it did not.
	known *agentv1.ZfsDataset
	// why, unless empty, is why nothing can be done with it.
	why string
	// job, of a replication policy: the one that keeps its copy.
	job *storev1.ReplicationJob
	// image, in the Ceph cluster fsid, is what it is instead of a dataset, which is
	// then its full name.
	image *agentv1.RbdImageID
	fsid  string
}

// key orders a policy's subjects.
func (s *subject) key() string { return s.node + "\x00" + s.dataset + "\x00" + s.job.GetId() }

// String names it for people.
func (s *subject) String() string {
	if s.job != nil {
		return s.dataset + " of " + s.node + " to " + s.job.GetTarget()
	}
	if s.node == "" {
		return s.dataset
	}
	return s.dataset + " of " + s.node
}

// copied tells that it is the copy that a replication job keeps: a snapshot
// taken of it would part it from its source.
func (s *subject) copied() bool { return s.known.GetReplicationJob() != "" }

// inventories are what nodes last reported of their ZFS, decoded when needed.
type inventories struct {
	snapshot *cluster.Snapshot
	nodes    map[string]map[string]*agentv1.ZfsDataset
	// partial are the nodes that reported only a part of what they have.
	partial map[string]bool
}

func newInventories(s *cluster.Snapshot) *inventories {
	return &inventories{snapshot: s, nodes: map[string]map[string]*agentv1.ZfsDataset{}, partial: map[string]bool{}}
}

// of gives a node's datasets by name.
func (i *inventories) of(node string) map[string]*agentv1.ZfsDataset {
	if datasets, ok := i.nodes[node]; ok {
		return datasets
	}
	datasets, inventory := map[string]*agentv1.ZfsDataset{}, &agentv1.ZfsInventory{}
	record, ok := i.snapshot.ZFS[node]
	err := proto.Unmarshal(record.Value.GetInventory(), inventory)
	i.partial[node] = !ok || err != nil || inventory.GetTruncated() || inventory.GetError() != ""
	for _, d := range inventory.GetDatasets() {
		datasets[d.GetName()] = d
	}
	i.nodes[node] = datasets
	return datasets
}

// locate finds the dataset that a policy names.
func (i *inventories) locate(ref *debvisorv1.DatasetRef) subject {
	s := subject{node: ref.GetNode().GetNodeId().GetId(), dataset: ref.GetPool() + "/" + ref.GetName()}
	if _, err := cluster.ZFSPath("dataset", ref.GetPool(), ref.GetName()); err != nil {
		s.why = err.Error()
		return s
	}
	s.known = i.of(s.node)[s.dataset]
	switch _, ok := i.snapshot.Nodes[s.node]; {
	case !ok:
		s.why = "there is no such node"
	case s.known == nil && !i.partial[s.node]:
		s.why = "there is no such dataset"
	}
	return s
}

// below gives a dataset and, as far as its node has reported them, all that are
// below it.
func (i *inventories) below(top subject) []subject {
	all := []subject{top}
	for name, d := range i.of(top.node) {
		if strings.HasPrefix(name, top.dataset+"/") {
			all = append(all, subject{node: top.node, dataset: name, known: d})
		}
	}
	return all
}

// retentionSubjects are the datasets of a retention policy: with those below, if
// it has them too and deep is asked for.
func (i *inventories) retentionSubjects(spec *debvisorv1.RetentionPolicySpec, deep bool) []subject {
	var all []subject
	for _, ref := range spec.GetDatasets() {
		if ref.GetBackend() == debvisorv1.StorageBackend_BACKEND_RBD {
			all = append(all, i.locateImage(ref))
			continue
		}
		s := i.locate(ref)
		if deep && spec.GetRecursive() && s.why == "" {
			all = append(all, i.below(s)...)
		} else {
			all = append(all, s)
		}
	}
	return inOrder(all)
}

// replicationSubjects are the sources of a replication policy's jobs, which were
// made when it was set.
func (i *inventories) replicationSubjects(policy string) []subject {
	var all []subject
	for job := range maps.Values(i.snapshot.Replications) {
		if job.Value.GetPolicy() != policy || job.Value.GetDeleting() {
			continue
		}
		s := subject{node: job.Value.GetSource(), dataset: job.Value.GetDataset(), job: job.Value}
		s.known = i.of(s.node)[s.dataset]
		if s.copied() && !s.options().GetNoSnapshot() {
			s.why = "it is a copy itself, of replication job " + s.known.GetReplicationJob() + ", and would part from its source by snapshots of its own"
		}
		all = append(all, s)
	}
	return inOrder(all)
}

// options are those of its job.
func (s *subject) options() *debvisorv1.ReplicationOptions {
	options := &debvisorv1.ReplicationOptions{}
	if proto.Unmarshal(s.job.GetOptions(), options) != nil {
		return &debvisorv1.ReplicationOptions{}
	}
	return options
}

// inOrder sorts subjects and drops what is named twice.
func inOrder(all []subject) []subject {
	slices.SortFunc(all, func(a, b subject) int { return strings.Compare(a.key(), b.key()) })
	return slices.CompactFunc(all, func(a, b subject) bool { return a.key() == b.key() })
}
