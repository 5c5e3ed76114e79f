package cluster_test

import (
	"testing"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// TestAccess holds what changes who may do what against what does not: by
// Access alone it is told whether a compiled policy still holds.
func TestAccess(t *testing.T) {
	begin := cluster.Empty().Draft()
	begin.Principals.Put("ada", &storev1.Principal{}, 7)
	begin.KeyUses.Put("k1", &storev1.KeyUse{}, 7)
	s := begin.Snapshot(7)
	if s.Access != 7 {
		t.Fatalf("Access is %d after the first principal", s.Access)
	}
	for name, c := range map[string]struct {
		change func(*cluster.Draft)
		counts bool
	}{
		"a principal comes":         {func(d *cluster.Draft) { d.Principals.Put("bob", &storev1.Principal{}, 9) }, true},
		"a principal changes":       {func(d *cluster.Draft) { d.Principals.Put("ada", &storev1.Principal{Type: "user"}, 9) }, true},
		"a principal goes":          {func(d *cluster.Draft) { d.Principals.Delete("ada") }, true},
		"a role comes":              {func(d *cluster.Draft) { d.Roles.Put("mover", &storev1.Role{}, 9) }, true},
		"a tenant comes":            {func(d *cluster.Draft) { d.Tenants.Put("shop", &storev1.Tenant{}, 9) }, true},
		"a key comes":               {func(d *cluster.Draft) { d.APIKeys.Put("k1", &storev1.APIKey{}, 9) }, true},
		"a certificate is revoked":  {func(d *cluster.Draft) { d.Revoked.Put("ff", "", 9) }, true},
		"nobody goes":               {func(d *cluster.Draft) { d.Principals.Delete("stranger") }, false},
		"a key is used":             {func(d *cluster.Draft) { d.KeyUses.Put("k1", &storev1.KeyUse{}, 9) }, false},
		"a VM comes":                {func(d *cluster.Draft) { d.VMs.Put("u1", &storev1.VM{}, 9) }, false},
		"the audit log grows":       {func(d *cluster.Draft) { d.AuditHeads.Put("r1", &storev1.AuditHead{}, 9) }, false},
		"a turn alone":              {func(d *cluster.Draft) { d.SetAccessTurn(9) }, false},
		"nothing but time":          {func(*cluster.Draft) {}, false},
		"two changes in one sweep":  {func(d *cluster.Draft) { d.Roles.Put("a", &storev1.Role{}, 8); d.Roles.Delete("a") }, true},
		"a join token is used, too": {func(d *cluster.Draft) { d.JoinTokens.Put("t", &storev1.JoinToken{}, 9) }, false},
	} {
		d := s.Draft()
		c.change(d)
		next := d.Snapshot(9)
		want := int64(7)
		if c.counts {
			want = 9
		}
		if next.Access != want {
			t.Errorf("%s: Access is %d, want %d", name, next.Access, want)
		}
		if later := next.Draft().Snapshot(12); later.Access != want {
			t.Errorf("%s: Access is %d in the snapshot after it, want %d", name, later.Access, want)
		}
	}
}
