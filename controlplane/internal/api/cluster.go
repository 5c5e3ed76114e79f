package api

import (
	"context"
	"maps"
	"slices"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

type clusterService struct {
	debvisorv1.UnimplementedClusterServiceServer
	view             *store.View
	store            *store.Store
	members          Members
	cluster, replica string
}

// GetCluster answers the replicas and which of them leads.
func (s *clusterService) GetCluster(context.Context, *debvisorv1.Empty) (*debvisorv1.Cluster, error) {
	snapshot := s.view.Current()
	answer := &debvisorv1.Cluster{Name: s.cluster, AnsweredBy: s.replica, Epoch: snapshot.Epoch}
	if snapshot.Leader != nil {
		answer.Leader, answer.Term = snapshot.Leader.Name, snapshot.Leader.Term.Revision
	}
	for _, name := range slices.Sorted(maps.Keys(snapshot.Replicas)) {
		r := snapshot.Replicas[name].Value
		answer.Replicas = append(answer.Replicas, &debvisorv1.Replica{
			Name: r.GetName(), CallersAddress: r.GetCallersAddress(), AgentsAddress: r.GetAgentsAddress(), Version: r.GetVersion(),
		})
	}
	return answer, nil
}
