package api_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestWhatIsNotBuiltYetSaysSo(t *testing.T) {
	r := start(t, 0)
	operator := r.principal("operator")
	image := &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_RBD, Pool: "p", Name: "n"}
	snapshot := &debvisorv1.SnapshotRef{Dataset: image, SnapshotName: "s"}
	for method, req := range map[string]any{
		"CreateRbdTemplateSnapshot": &debvisorv1.RbdTemplateRequest{Image: image},
		"CloneRbdFromTemplate":      &debvisorv1.RbdCloneRequest{TemplateSnapshot: snapshot, NewImage: image},
		"CreateSnapshot":            &debvisorv1.SnapshotRequest{Dataset: image},
		"GetSnapshot":               snapshot,
		"PruneSnapshots":            &debvisorv1.PruneRequest{Dataset: image, Policy: &debvisorv1.RetentionPolicy{KeepLast: 1}},
		"PlanZfsReplication":        &debvisorv1.ZfsReplicationPlan{Dataset: image, Target: nodeRef("n1")},
	} {
		err := operator.Invoke(t.Context(), "/debvisor.v1.StorageService/"+method, req, &debvisorv1.Empty{})
		if status.Code(err) != codes.Unimplemented || errdefs.FromStatus(err).Code != "NOT_BUILT_YET" {
			t.Errorf("%s answers %v", method, err)
		}
	}
	r.vm("11111111-1111-4111-8111-111111111111", "x", "a")
	_, err := debvisorv1.NewMigrationServiceClient(operator).FailoverVM(t.Context(), &debvisorv1.VMRef{VmId: "x"})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("FailoverVM answers %v", err)
	}
}
