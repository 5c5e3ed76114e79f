package replication

import (
	"context"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// before has something done after a task has looked for its snapshots and before it
// takes them.
type before func()

func (b before) Frozen(ctx context.Context, _ *agentv1.Freeze, take func(ctx context.Context) error) (*agentv1.FreezeOutcome, error) {
	b()
	return nil, take(ctx)
}

// TestLateSnapshot: what a former process's command takes after this one has looked
// is the operation's; what somebody else takes then is not touched.
func TestLateSnapshot(t *testing.T) {
	for operation, code := range map[string]string{"op": "", "another": zfs.CodeSnapshotExists} {
		t.Run(operation, func(t *testing.T) {
			j := newJob(t, "dst", false, false)
			r := New(Config{ZFS: zfs.New(zfs.Config{}), Log: hclog.NewNullLogger(), Freezer: before(func() {
				sh(t, "zfs", "snapshot", "-o", "org.debvisor:operation="+operation, j.source+"@dv-1")
			})})
			out := quickKind{snapshotKind{r}}.Do(t.Context(), &agentv1.Task{Spec: &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ZfsSnapshotCreate{
				ZfsSnapshotCreate: &agentv1.ZfsSnapshotCreate{Datasets: []string{j.source}, Name: "dv-1", Operation: "op"},
			}}}, marks{})
			taken := guid(t, j.source+"@dv-1")
			if out.GetErrorCode() != code || code == "" && out.GetZfs().GetMade()[0].GetGuid() != taken {
				t.Errorf("%v, and %d was taken", out, taken)
			}
		})
	}
}
