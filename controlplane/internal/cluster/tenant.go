package cluster

import (
	"bytes"

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
