package api_test

import (
	"fmt"
	"strings"
	"testing"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// However much is wrong with a request, its answer fits what clients take of
// headers, in which errors travel.
func TestErrorsFitIntoHeaders(t *testing.T) {
	r := start(t, 0)
	role := &debvisorv1.Role{Name: "r"}
	for i := range 1000 {
		role.Permissions = append(role.Permissions, fmt.Sprintf("%s%%%d", strings.Repeat("É", 100), i))
	}
	_, err := debvisorv1.NewAccessServiceClient(r.principal("operator")).SetRole(t.Context(), role)
	e := errdefs.FromStatus(err)
	if e.Kind != errdefs.InvalidArgument || e.Code != "INVALID_FIELD" || e.Context["field"] != "permissions[0]" || e.Context["trace_id"] == "" || !strings.Contains(e.Message, "permissions[0]") {
		t.Errorf("a thousand bad permissions are answered with %v (%+v)", err, e)
	}
}
