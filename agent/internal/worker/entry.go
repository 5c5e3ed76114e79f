package worker

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

// entry is what the journal knows of one task. An entry is never changed once
// it is shared: a change is a new one.
type entry struct {
	id           string
	task         *agentv1.Task // nil once acknowledged
	state        task.State
	began        bool // some process of this journal called Do or Observe
	marks        []string
	outcome      *agentv1.TaskOutcome
	acceptedAt   time.Time
	endedAt      time.Time
	acknowledged bool
}

// row is an entry on disk.
type row struct {
	Task         []byte    `json:"task,omitempty"`
	State        int32     `json:"state"`
	Began        bool      `json:"began,omitempty"`
	Marks        []string  `json:"marks,omitempty"`
	Outcome      []byte    `json:"outcome,omitempty"`
	AcceptedAt   time.Time `json:"accepted_at"`
	EndedAt      time.Time `json:"ended_at,omitzero"`
	Acknowledged bool      `json:"acknowledged,omitempty"`
}

// kind is the last part of the task's id.
func (e *entry) kind() string { return e.id[strings.LastIndexByte(e.id, '/')+1:] }

// ids are what lines about the task are found by; once it is acknowledged only
// its own is known.
func (e *entry) ids() obs.IDs {
	if e.task == nil {
		return obs.IDs{Task: e.id}
	}
	return IDs(e.task)
}

// resource is what the task locks; a task without one locks only itself.
func (e *entry) resource() string {
	if r := e.task.GetResource(); r != "" {
		return r
	}
	return "task/" + e.id
}

func (e *entry) marked(name string) bool { return slices.Contains(e.marks, name) }

func (e *entry) clone() *entry {
	c := *e
	c.marks = slices.Clone(e.marks)
	return &c
}

func (e *entry) encode() ([]byte, error) {
	r := row{
		State: int32(e.state), Began: e.began, Marks: e.marks,
		AcceptedAt: e.acceptedAt, EndedAt: e.endedAt, Acknowledged: e.acknowledged,
	}
	var err error
	if e.task != nil {
		if r.Task, err = proto.Marshal(e.task); err != nil {
			return nil, fmt.Errorf("encoding the task: %w", err)
		}
	}
	if e.outcome != nil {
		if r.Outcome, err = proto.Marshal(e.outcome); err != nil {
			return nil, fmt.Errorf("encoding the outcome: %w", err)
		}
	}
	return json.Marshal(r)
}

func decodeEntry(id string, value []byte) (*entry, error) {
	var r row
	if err := json.Unmarshal(value, &r); err != nil {
		return nil, err
	}
	e := &entry{
		id: id, state: task.State(r.State), began: r.Began, marks: r.Marks,
		acceptedAt: r.AcceptedAt, endedAt: r.EndedAt, acknowledged: r.Acknowledged,
	}
	if !r.Acknowledged {
		e.task = &agentv1.Task{}
		if err := proto.Unmarshal(r.Task, e.task); err != nil {
			return nil, fmt.Errorf("decoding the task: %w", err)
		}
	}
	if task.Ended(e.state) {
		e.outcome = &agentv1.TaskOutcome{}
		if err := proto.Unmarshal(r.Outcome, e.outcome); err != nil {
			return nil, fmt.Errorf("decoding the outcome: %w", err)
		}
	}
	return e, nil
}

// endState is the state that an outcome ends its task in.
func endState(o *agentv1.TaskOutcome) task.State {
	switch o.GetErrorCode() {
	case "":
		return task.Succeeded
	case CodeCancelled:
		return task.Cancelled
	}
	return task.Failed
}
