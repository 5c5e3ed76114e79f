package accessfile_test

import (
	"strings"
	"testing"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
)

const whole = `# who may do what
principals:
  ci-system:
    type: service
    roles: [developer]
    permissions: [vm:list, "storage:*"]
    tenant: shop
    limit: {per_minute: 600, burst: 100}
  1234:
    limit: {unlimited: true}
roles:
  mover:
    permissions: [migration:*]
    limit: {per_minute: 50}
  nothing:
tenants:
  shop:
    description: the shop
    storage:
      - {backend: zfs, pool: tank, name: shop}
      - {backend: rbd, pool: vms, name: shop}
  bank:
    storage:
      - {backend: zfs, pool: tank, name: shopkeeper}
keys:
  1234567890123456:
    sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
    principal: ci-system
    expires: 2027-01-31T00:00:00Z
`

func TestParse(t *testing.T) {
	p, err := accessfile.Parse("f", []byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	ci := p.Principals["ci-system"]
	if ci.GetType() != "service" || ci.GetTenant() != "shop" || strings.Join(ci.GetPermissions(), " ") != "vm:list storage:*" ||
		ci.GetLimit().GetPerMinute() != 600 || ci.GetLimit().GetBurst() != 100 {
		t.Errorf("ci-system came out as %v", ci)
	}
	if !p.Principals["1234"].GetLimit().GetUnlimited() {
		t.Errorf("1234 came out as %v", p.Principals["1234"])
	}
	key := p.Keys["1234567890123456"]
	if key.GetPrincipal() != "ci-system" || key.GetExpiresAt().GetSeconds() != 1801353600 || key.GetSource() != accessfile.Source {
		t.Errorf("the key came out as %v", key)
	}
	if len(p.Roles) != 2 || len(p.Tenants) != 2 || len(p.Tenants["shop"].GetStorage()) != 2 {
		t.Errorf("%d roles, tenants %v", len(p.Roles), p.Tenants)
	}
	for _, empty := range []string{"", "# nothing\n", "---\n", "principals:\nkeys: {}\n"} {
		if p, err := accessfile.Parse("f", []byte(empty)); err != nil || len(p.Principals) != 0 {
			t.Errorf("%q: %v, %v", empty, p, err)
		}
	}
}
