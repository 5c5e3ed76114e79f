package cluster

import (
	"maps"
	"slices"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// index is what a snapshot derives from its records, so that nobody has to
// walk ten thousand ended operations to find the one that runs. Each posting
// holds keys in ascending order.
type index struct {
	vmsByName        postings
	vmsByNode        postings
	tasksByOperation postings
	tasksByNode      postings
	// activeOperations holds, under the empty name, those that have not ended.
	activeOperations postings
}

func newIndex() index {
	return index{
		vmsByName: postings{}, vmsByNode: postings{},
		tasksByOperation: postings{}, tasksByNode: postings{},
		activeOperations: postings{},
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
	return slices.DeleteFunc(s.TasksOn(node), func(e Entry[*storev1.Task]) bool {
		return task.Ended(task.State(e.Value.GetState()))
	})
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

// indexer changes postings on their way from one snapshot to the next: the map
// is copied at the first change, a list at each, so that readers of older
// snapshots see nothing of it.
type indexer struct {
	postings postings
	owned    bool
}

// move takes a key from one name to another; an empty bool means no name.
func (x *indexer) move(key, from string, had bool, to string, has bool) {
	if had == has && from == to {
		return
	}
	if !x.owned {
		x.postings, x.owned = maps.Clone(x.postings), true
	}
	if had {
		x.remove(key, from)
	}
	if has {
		x.insert(key, to)
	}
}

func (x *indexer) remove(key, name string) {
	keys := x.postings[name]
	at, found := slices.BinarySearch(keys, key)
	switch {
	case !found:
	case len(keys) == 1:
		delete(x.postings, name)
	default:
		x.postings[name] = slices.Concat(keys[:at], keys[at+1:])
	}
}

func (x *indexer) insert(key, name string) {
	keys := x.postings[name]
	at, found := slices.BinarySearch(keys, key)
	if !found {
		x.postings[name] = slices.Concat(keys[:at], []string{key}, keys[at:])
	}
}
