package worker

import (
	"encoding/json"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// keepPlacement is how long the newest placement of a VM is remembered after it
// was last told. What is older than that, no leader has in its records any
// more. Leaders remember what they told for longer (of VMs that vanished too),
// so that a VM whose placements are counted anew is never taken for an old one.
const keepPlacement = 30 * 24 * time.Hour

// placement is which placement of a VM a task was ordered for. A restore from a
// backup begins a new epoch, in which generations start lower.
type placement struct {
	vm         string
	Epoch      uint64    `json:"epoch"`
	Generation uint64    `json:"generation"`
	At         time.Time `json:"at"` // when it was last told
}

func (p placement) less(o placement) bool {
	if p.Epoch != o.Epoch {
		return p.Epoch < o.Epoch
	}
	return p.Generation < o.Generation
}

// placementOf is the placement that a task was ordered for; nil: the task tells
// of none.
func placementOf(t *agentv1.Task, at time.Time) *placement {
	p := &placement{Epoch: t.GetTerm().GetEpoch(), At: at}
	if order := t.GetSpec().GetVmPower(); order != nil {
		p.vm, p.Generation = order.GetVmUuid(), order.GetGeneration()
	}
	if order := t.GetSpec().GetMigrateReceive(); order != nil {
		p.vm, p.Generation = order.GetRight().GetVmUuid(), order.GetGeneration()
	}
	if order := t.GetSpec().GetFailoverStart(); order != nil {
		p.vm, p.Generation = order.GetVmUuid(), order.GetGeneration()
	}
	if order := t.GetSpec().GetFailoverDiscard(); order != nil && order.GetGeneration() > 0 {
		// It tells of the next: whatever was ordered for the one that this node had
		// is overtaken.
		p.vm, p.Generation = order.GetVmUuid(), order.GetGeneration()+1
	}
	if p.vm == "" || p.Generation == 0 {
		return nil
	}
	return p
}

// newer is the placement of a task if it is the newest that was told; nil: it
// is not.
func (w *Worker) newer(t *agentv1.Task, at time.Time) *placement {
	p := placementOf(t, at)
	if p == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if known, ok := w.placed[p.vm]; ok && p.less(known) {
		return nil
	}
	return p
}

// overtaken compares a task's placement with the newest that was told.
func (w *Worker) overtaken(id string) (by uint64, overtaken bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.entries[id]
	p := placementOf(e.task, e.acceptedAt)
	if p == nil {
		return 0, false
	}
	known := w.placed[p.vm]
	return known.Generation, p.less(known)
}

// forget drops the placements of VMs; callers hold writing.
func (w *Worker) forget(vms []string) error {
	if len(vms) == 0 {
		return nil
	}
	if err := w.journal.dropPlacements(vms); err != nil {
		return w.fail(fmt.Errorf("pruning the journal: %w", err))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, vm := range vms {
		delete(w.placed, vm)
	}
	return nil
}

// accept writes a task and what it tells of its VM's placement (nil: nothing
// new) at once.
func (j *journal) accept(e *entry, told *placement) error {
	if told == nil {
		return j.put(e)
	}
	value, err := e.encode()
	if err != nil {
		return err
	}
	placed, err := json.Marshal(told)
	if err != nil {
		return err
	}
	return j.db.Update(func(tx *bolt.Tx) error {
		if err := tx.Bucket(vmBucket).Put([]byte(told.vm), placed); err != nil {
			return err
		}
		return tx.Bucket(taskBucket).Put([]byte(e.id), value)
	})
}

// placements reads what the journal knows of VMs' placements, by UUID.
func (j *journal) placements() (map[string]placement, error) {
	all := map[string]placement{}
	err := j.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(vmBucket).ForEach(func(key, value []byte) error {
			p := placement{vm: string(key)}
			if err := json.Unmarshal(value, &p); err != nil {
				return fmt.Errorf("reading the journal: placement of VM %s: %w", key, err)
			}
			all[p.vm] = p
			return nil
		})
	})
	return all, err
}

func (j *journal) dropPlacements(vms []string) error {
	return j.db.Update(func(tx *bolt.Tx) error {
		for _, vm := range vms {
			if err := tx.Bucket(vmBucket).Delete([]byte(vm)); err != nil {
				return err
			}
		}
		return nil
	})
}
