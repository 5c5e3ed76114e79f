package controlplane

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/members"
)

// membership is what the API does to replicas.
type membership struct {
	*members.Archive
	*members.Removal
	*members.Hearing
}

func (r *replica) members(log hclog.Logger) membership {
	m := membership{
		Archive: &members.Archive{Member: r.member, Etcd: r.client, View: r.view, Store: r.store, Log: log},
		Removal: &members.Removal{Self: r.member.Record().Name, View: r.view, Store: r.store, Hearing: r.hearing, Log: log},
		Hearing: r.hearing,
	}
	if r.embedded != nil {
		m.Removal.Etcd = r.client
	}
	return m
}

// report says how this replica is, for the others and for those who ask any.
func (r *replica) report(ctx context.Context) error {
	reporter := members.Reporter{
		Member: r.member, Store: r.store, Etcd: r.client, Embedded: r.embedded != nil, Log: r.cfg.Log.Named("members"),
		Ready: func() ([]string, <-chan struct{}) {
			last, changed := r.health.Last()
			reasons := make([]string, 0, len(last.Reasons))
			for _, reason := range last.Reasons {
				reasons = append(reasons, reason.Message)
			}
			return reasons, changed
		},
	}
	return reporter.Run(ctx)
}
