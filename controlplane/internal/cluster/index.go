package cluster

import (
	"maps"
	"slices"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// index is what a snapshot derives from its records, so that nobody has to
// walk ten thousand ended operations to find the one that runs. Each posting
// holds keys in ascending order.
type index struct {
	vmsByName        postings
	vmsByNode        postings
	tasksByOperation postings
	tasksByNode      postings
	openTasksByNode  postings
	// vmsByTenant, vmsByOwnName (see ownName) and operationsByTenant hold what
	// is a tenant's.
	vmsByTenant, vmsByOwnName, operationsByTenant postings
	// activeOperations holds, under the empty name, those that have not ended.
	activeOperations postings
}

func newIndex() index {
	return index{
		vmsByName: postings{}, vmsByNode: postings{},
		tasksByOperation: postings{}, tasksByNode: postings{},
		openTasksByNode: postings{}, activeOperations: postings{},
		vmsByTenant: postings{}, vmsByOwnName: postings{}, operationsByTenant: postings{},
	}
}

// postings maps a name to the sorted keys of the records that bear it.
type postings map[string][]string

// FindVM gives the UUIDs that a reference means: itself when it is the UUID of
// a VM, else those of all VMs of that name, in ascending order.
func (s *Snapshot) FindVM(ref string) []string {
	if _, ok := s.VMs[ref]; ok {
		return []string{ref}
	}
	return slices.Clone(s.index.vmsByName[ref])
}

// VMsOn gives the VMs whose placement is that node, by ascending UUID.
func (s *Snapshot) VMsOn(node string) []Entry[*storev1.VM] {
	return pick(s.VMs, s.index.vmsByNode[node])
}

// TasksOf gives an operation's tasks, by ascending id.
func (s *Snapshot) TasksOf(operation string) []Entry[*storev1.Task] {
	return pick(s.Tasks, s.index.tasksByOperation[operation])
}

// TasksOn gives a node's tasks, ended or not, by ascending id.
func (s *Snapshot) TasksOn(node string) []Entry[*storev1.Task] {
	return pick(s.Tasks, s.index.tasksByNode[node])
}

// OpenTasksOn gives a node's tasks that have not ended, by ascending id.
func (s *Snapshot) OpenTasksOn(node string) []Entry[*storev1.Task] {
	return pick(s.Tasks, s.index.openTasksByNode[node])
}

// ActiveOperations gives the operations that have not ended, by ascending id.
func (s *Snapshot) ActiveOperations() []Entry[*storev1.Operation] {
	return pick(s.Operations, s.index.activeOperations[""])
}

// pick gives the entries of those keys.
func pick[T any](from map[string]Entry[T], keys []string) []Entry[T] {
	entries := make([]Entry[T], 0, len(keys))
	for _, key := range keys {
		if e, ok := from[key]; ok {
			entries = append(entries, e)
		}
	}
	return entries
}

// indexer changes postings on their way from one snapshot to the next. The map
// and each list in it are copied before their first change, so that readers of
// older snapshots see nothing of it.
type indexer struct {
	postings postings
	// owned holds the names whose lists this draft has already copied; nil
	// while the map itself is still shared.
	owned map[string]struct{}
}

// move takes a key from one name to another; had and has say whether there was
// and is a name at all.
func (x *indexer) move(key, from string, had bool, to string, has bool) {
	if had == has && from == to {
		return
	}
	if x.owned == nil {
		x.postings, x.owned = maps.Clone(x.postings), map[string]struct{}{}
	}
	if had {
		x.remove(key, from)
	}
	if has {
		x.insert(key, to)
	}
}

func (x *indexer) remove(key, name string) {
	keys := x.own(name)
	at, found := slices.BinarySearch(keys, key)
	if found {
		keys = slices.Delete(keys, at, at+1)
	}
	if len(keys) == 0 {
		delete(x.postings, name)
		return
	}
	x.postings[name] = keys
}

func (x *indexer) insert(key, name string) {
	keys := x.own(name)
	at, found := slices.BinarySearch(keys, key)
	if !found {
		x.postings[name] = slices.Insert(keys, at, key)
	}
}

// own gives a name's list, safe to change in place.
func (x *indexer) own(name string) []string {
	keys := x.postings[name]
	if _, ok := x.owned[name]; !ok {
		x.owned[name] = struct{}{}
		keys = slices.Clone(keys)
	}
	return keys
}
