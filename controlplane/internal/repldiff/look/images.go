package look

import (
	"context"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Images asks a node for the snapshots of images of its Ceph cluster.
func Images(ctx context.Context, ask Ask, node string, q *agentv1.ListRbd) ([]*agentv1.RbdSnapshot, error) {
	var all []*agentv1.RbdSnapshot
	err := ask(ctx, node, &agentv1.Ask{Question: &agentv1.Ask_ListRbd{ListRbd: q}}, func(a *agentv1.Answer) error {
		all = append(all, a.GetRbdListing().GetSnapshots()...)
		if len(all) > maxListed {
			return errdefs.New(errdefs.FailedPrecondition, "TOO_MANY_SNAPSHOTS", "node %s sees more than %d snapshots there", node, maxListed).With("node", node)
		}
		return nil
	})
	return all, err
}
