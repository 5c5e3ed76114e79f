package replication

import (
	"context"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// brief is a freeze that is over before ZFS has done anything; it says so as freeze.Freezer does.
type brief struct{}

func (brief) Frozen(ctx context.Context, order *agentv1.Freeze, take func(ctx context.Context) error) (*agentv1.FreezeOutcome, error) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	outcome := &agentv1.FreezeOutcome{Reason: "the freeze had used up its budget"}
	err := take(ctx)
	if err == nil && order.GetRequired() {
		err = errdefs.New(errdefs.FailedPrecondition, "FREEZE_EXPIRED", "%s", outcome.GetReason())
	}
	return outcome, err
}

// TestAFreezeThatIsTooShort: snapshots for which the freeze did not last are taken to their end. Where it was only preferred they stay, and
// are said to be of a guest that was thawed; where it was required none is left.
func TestAFreezeThatIsTooShort(t *testing.T) {
	for _, required := range []bool{false, true} {
		j := newJob(t, "dst", false, false)
		r := New(Config{ZFS: zfs.New(zfs.Config{}), Log: hclog.NewNullLogger(), Freezer: brief{}})
		out := quickKind{snapshotKind{r}}.Do(t.Context(), &agentv1.Task{Spec: &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ZfsSnapshotCreate{
			ZfsSnapshotCreate: &agentv1.ZfsSnapshotCreate{
				Datasets: []string{j.source}, Name: "dv-1", Operation: "op", Freeze: &agentv1.Freeze{VmUuid: "v", Required: required},
			},
		}}}, marks{})
		code, left := "", j.source+"@dv-1"
		if required {
			code, left = "FREEZE_EXPIRED", ""
		}
		if out.GetErrorCode() != code || (len(out.GetZfs().GetMade()) == 1) == required || out.GetFreeze().GetFrozen() || out.GetFreeze().GetReason() == "" {
			t.Errorf("required %v: %v", required, out)
		}
		if have := sh(t, "zfs", "list", "-H", "-o", "name", "-t", "snapshot", "-r", j.source); have != left {
			t.Errorf("required %v: there are %q", required, have)
		}
	}
}
