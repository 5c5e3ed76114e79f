package cluster

import (
	"bytes"
	"iter"
	"strings"

	"google.golang.org/protobuf/proto"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// TenantOf tells whose a VM is, by its policy; empty: nobody's in particular. A
// policy that cannot be read is as none.
func TenantOf(vm *storev1.VM) string {
	if len(vm.GetPolicy()) == 0 {
		return ""
	}
	policy := &debvisorv1.VMPolicy{}
	if err := proto.Unmarshal(vm.GetPolicy(), policy); err != nil {
		return ""
	}
	return policy.GetTenant()
}

// ownName is a VM's name among those of its tenant.
func ownName(tenant, name string) string { return tenant + "\x00" + name }

// indexTenant notes whose a VM is. VMs of nobody in particular are in no index:
// who may see them sees all.
func (d *Draft) indexTenant(key string, was *storev1.VM, had bool, is *storev1.VM, has bool) {
	if had && has && was.GetName() == is.GetName() && bytes.Equal(was.GetPolicy(), is.GetPolicy()) {
		return
	}
	from, to := TenantOf(was), TenantOf(is)
	if had, has = had && from != "", has && to != ""; !had && !has {
		return
	}
	d.vmsByTenant.move(key, from, had, to, has)
	d.vmsByOwnName.move(key, ownName(from, was.GetName()), had, ownName(to, is.GetName()), has)
}

// TenantOfStorage tells which of the tenants a dataset (backend "zfs") or an image
// ("rbd", in a namespace as "namespace/image") belongs to, whether it exists or
// not; empty: to none. Of records that overlap the one that says most counts;
// where two tenants claim the same, it is neither's.
func TenantOfStorage(tenants iter.Seq2[string, *storev1.Tenant], backend, pool, name string) string {
	owner, best := "", -1
	for tenant, record := range tenants {
		for _, own := range record.GetStorage() {
			if own.GetBackend() != backend || own.GetPool() != pool || !below(backend, own.GetName(), name) {
				continue
			}
			switch length := len(own.GetName()); {
			case length > best:
				owner, best = tenant, length
			case length == best && owner != tenant:
				owner = ""
			}
		}
	}
	return owner
}

// below tells whether a name is that of what is owned or of something in it. A
// namespace of RBD is no image, so that an image of its name is not in it. A
// name that leads elsewhere than it says is in nothing.
func below(backend, owned, name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return owned == "" || strings.HasPrefix(name, owned+"/") || backend == "zfs" && name == owned
}
