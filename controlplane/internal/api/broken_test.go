package api_test

import (
	"testing"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// A record that somebody broke grants nothing, and the API mends it.
func TestBrokenRecordsOfAccess(t *testing.T) {
	r := start(t, 1<<30)
	r.put(
		store.PutJSON(store.PrincipalKey("root"), &storev1.Principal{Roles: []string{"operator"}}),
		store.PutJSON(store.PrincipalKey("ada"), &storev1.Principal{Roles: []string{"viewer"}}),
		store.PutString(store.PrincipalKey("operator"), `{"roles": "none"}`),
		store.PutString(store.RoleKey("viewer"), `["vm:list"`),
	)
	founder, ada, root := r.principal("operator"), r.principal("ada"), debvisorv1.NewAccessServiceClient(r.principal("root"))
	if e := listOn(t, founder); e == nil || e.Code != "PERMISSION_DENIED" {
		t.Errorf("a founder whose record is broken: %v", e)
	}
	if e := listOn(t, ada); e == nil || e.Code != "PERMISSION_DENIED" {
		t.Errorf("one whose role's record is broken: %v", e)
	}
	if _, err := root.SetPrincipal(t.Context(), &debvisorv1.Principal{Name: "operator", Roles: []string{"operator"}}); err != nil {
		t.Errorf("setting the principal anew: %v", err)
	}
	if _, err := root.DeleteRole(t.Context(), &debvisorv1.RoleRef{Name: "viewer"}); err != nil {
		t.Errorf("deleting the role: %v", err)
	}
	if e := listOn(t, founder); e != nil {
		t.Errorf("the founder again: %v", e)
	}
	if e := listOn(t, ada); e != nil {
		t.Errorf("the built-in role again: %v", e)
	}
	r.put(store.PutString(store.PrincipalKey("ada"), `{`))
	if _, err := root.DeletePrincipal(t.Context(), &debvisorv1.PrincipalRef{Name: "ada"}); err != nil {
		t.Errorf("deleting the principal: %v", err)
	}
}
