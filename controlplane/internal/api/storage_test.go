package api_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The methods of the contract that are not built yet are found by reflection,
// so that none is left out when they are built one by one.
func TestWhatIsNotBuiltYetSaysSo(t *testing.T) {
	r := start(t, 0)
	operator := r.principal("operator")
	dataset := &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_RBD, Pool: "p", Name: "n"}
	snapshot := &debvisorv1.SnapshotRef{Dataset: dataset, SnapshotName: "s"}
	requests := map[string]any{
		"CreateSnapshot":            &debvisorv1.SnapshotRequest{Dataset: dataset},
		"PruneSnapshots":            &debvisorv1.PruneRequest{Dataset: dataset, Policy: &debvisorv1.RetentionPolicy{KeepLast: 1}},
		"PlanZfsReplication":        &debvisorv1.ZfsReplicationPlan{Dataset: dataset, Target: &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: "n1"}}},
		"RunZfsReplication":         &debvisorv1.JobRef{JobId: "j"},
		"GetReplicationStatus":      &debvisorv1.JobRef{JobId: "j"},
		"CreateRbdTemplateSnapshot": &debvisorv1.RbdTemplateRequest{Image: dataset},
		"CloneRbdFromTemplate":      &debvisorv1.RbdCloneRequest{TemplateSnapshot: snapshot, NewImage: dataset},
	}
	for _, m := range debvisorv1.StorageService_ServiceDesc.Methods {
		req, ok := requests[m.MethodName]
		if !ok {
			t.Errorf("%s has no request here", m.MethodName)
			continue
		}
		err := operator.Invoke(t.Context(), "/debvisor.v1.StorageService/"+m.MethodName, req, &debvisorv1.Empty{})
		if status.Code(err) != codes.Unimplemented || errdefs.FromStatus(err).Code != "NOT_BUILT_YET" {
			t.Errorf("%s answers %v", m.MethodName, err)
		}
	}
	r.vm("11111111-1111-4111-8111-111111111111", "x", "a")
	_, err := debvisorv1.NewMigrationServiceClient(operator).FailoverVM(t.Context(), &debvisorv1.VMRef{VmId: "x"})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("FailoverVM answers %v", err)
	}
}
