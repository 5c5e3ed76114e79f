package replication

import (
	"context"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// brief is a freeze that is over before ZFS has done anything, or, with late, only just before it has told.
type brief struct{ late func() }

func (b brief) Frozen(ctx context.Context, _ *agentv1.Freeze, take func(ctx context.Context) error) (*agentv1.FreezeOutcome, error) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if b.late != nil {
		b.late()
	}
	return &agentv1.FreezeOutcome{Frozen: true}, take(ctx)
}

// TestAFreezeThatIsTooShort: snapshots for which the freeze did not last are taken without it where it was only preferred, and said to be
// so; where it was required none is left.
func TestAFreezeThatIsTooShort(t *testing.T) {
	for name, c := range map[string]struct {
		required, late bool
		code           string
		left           int
	}{
		"preferred":                        {left: 1},
		"preferred, taken all the same":    {late: true, left: 1},
		"required":                         {required: true, code: codeFreezeExpired},
		"required, and taken all the same": {required: true, late: true, code: codeFreezeExpired},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, "dst", false, false)
			freezer := brief{}
			if c.late {
				freezer.late = func() { sh(t, "zfs", "snapshot", "-o", "org.debvisor:operation=op", j.source+"@dv-1") }
			}
			r := New(Config{ZFS: zfs.New(zfs.Config{}), Log: hclog.NewNullLogger(), Freezer: freezer})
			out := quickKind{snapshotKind{r}}.Do(t.Context(), &agentv1.Task{Spec: &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ZfsSnapshotCreate{
				ZfsSnapshotCreate: &agentv1.ZfsSnapshotCreate{
					Datasets: []string{j.source}, Name: "dv-1", Operation: "op", Freeze: &agentv1.Freeze{VmUuid: "v", Required: c.required},
				},
			}}}, marks{})
			if out.GetErrorCode() != c.code || len(out.GetZfs().GetMade()) != c.left || out.GetFreeze().GetFrozen() || out.GetFreeze().GetReason() == "" {
				t.Errorf("%v", out)
			}
			have := strings.Fields(sh(t, "zfs", "list", "-H", "-o", "name", "-t", "snapshot", "-r", j.source))
			if len(have) != c.left {
				t.Errorf("there are %q", have)
			}
		})
	}
}
