package metrics

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

var (
	operationsDesc = obs.Desc("operations", "Operations that have not ended, by kind and state.", "kind", "state")
	oldestDesc     = obs.Desc("operation_oldest_age_seconds", "The age of the oldest operation that has not ended, by kind.", "kind")
	tasksDesc      = obs.Desc("tasks", "Tasks that have not ended, by kind and state.", "kind", "state")
)

type kindState struct{ kind, state string }

// work tells of operations and tasks that have not ended.
func work(s *cluster.Snapshot, now time.Time, words *obs.Words, out chan<- prometheus.Metric) {
	operations, oldest := map[kindState]int{}, map[string]time.Duration{}
	for _, op := range s.ActiveOperations() {
		kind := words.Word(op.Value.GetKind())
		operations[kindState{kind, operationState(op.Value.GetState())}]++
		oldest[kind] = max(oldest[kind], now.Sub(op.Value.GetCreatedAt().AsTime()))
	}
	for of, n := range operations {
		out <- gauge(operationsDesc, float64(n), of.kind, of.state)
	}
	for kind, age := range oldest {
		out <- gauge(oldestDesc, age.Seconds(), kind)
	}
	tasks := map[kindState]int{}
	for node := range s.Nodes {
		for _, t := range s.OpenTasksOn(node) {
			tasks[kindState{taskKind(t.Value, words), taskState(t.Value.GetState())}]++
		}
	}
	for of, n := range tasks {
		out <- gauge(tasksDesc, float64(n), of.kind, of.state)
	}
}

func operationState(s task.OpState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "OPERATION_STATE_"))
}

func taskState(s storev1.TaskState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "TASK_STATE_"))
}

// taskKind is the name of a task's kind in its message, such as migrate_send.
func taskKind(t *storev1.Task, words *obs.Words) string {
	spec := &agentv1.TaskSpec{}
	if proto.Unmarshal(t.GetSpec(), spec) != nil {
		return obs.Other
	}
	var kind protoreflect.Name
	m := spec.ProtoReflect()
	if set := m.WhichOneof(m.Descriptor().Oneofs().ByName("kind")); set != nil {
		kind = set.Name()
	}
	return words.Word(string(kind))
}
