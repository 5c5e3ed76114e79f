package api_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

func TestWhatIsNotBuiltYetSaysSo(t *testing.T) {
	r := start(t, 0)
	operator := r.principal("operator")
	r.vm("11111111-1111-4111-8111-111111111111", "x", "a")
	_, err := debvisorv1.NewMigrationServiceClient(operator).FailoverVM(t.Context(), &debvisorv1.VMRef{VmId: "x"})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("FailoverVM answers %v", err)
	}
}
