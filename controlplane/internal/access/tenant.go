package access

import (
	"fmt"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The words for backends in records.
const (
	backendZFS = "zfs"
	backendRBD = "rbd"
)

// ListTenants gives every tenant, by name.
func (w World) ListTenants() *debvisorv1.TenantList {
	list := &debvisorv1.TenantList{}
	for _, t := range w.Policy.Tenants(w.Snapshot) {
		list.Tenants = append(list.Tenants, tenantMessage(t))
	}
	return list
}

// GetTenant gives one; NotFound where there is none of that name.
func (w World) GetTenant(name string) (*debvisorv1.Tenant, error) {
	t, err := w.findTenant(name)
	if err != nil {
		return nil, err
	}
	return tenantMessage(t), nil
}

func (w World) findTenant(name string) (authz.Record[*storev1.Tenant], error) {
	t, ok := w.Policy.Tenant(w.Snapshot, name)
	if !ok {
		return t, errdefs.New(errdefs.NotFound, "TENANT_NOT_FOUND", "no tenant %q; there are %s", name, w.someTenants()).With("tenant", name)
	}
	return t, nil
}

// hasTenant refuses a field that names a tenant which does not exist.
func (w World) hasTenant(field, tenant string) error {
	if _, ok := w.Policy.Tenant(w.Snapshot, tenant); !ok {
		return errdefs.Field(field, tenant, "a tenant that exists: "+w.someTenants())
	}
	return nil
}

func (w World) someTenants() string { return some(names(w.Policy.Tenants(w.Snapshot))) }

func tenantMessage(t authz.Record[*storev1.Tenant]) *debvisorv1.Tenant {
	m := &debvisorv1.Tenant{Name: t.Name, Description: t.Value.GetDescription(), Source: t.Source}
	for _, s := range t.Value.GetStorage() {
		backend := debvisorv1.StorageBackend_BACKEND_UNKNOWN
		switch s.GetBackend() {
		case backendZFS:
			backend = debvisorv1.StorageBackend_BACKEND_ZFS
		case backendRBD:
			backend = debvisorv1.StorageBackend_BACKEND_RBD
		}
		m.Storage = append(m.Storage, &debvisorv1.TenantStorage{Backend: backend, Pool: s.GetPool(), Name: s.GetName()})
	}
	return m
}

// SetTenant makes or replaces a tenant. InvalidArgument for storage that cannot
// be or is said twice, FailedPrecondition where another tenant has it, whole or
// in part, and for a tenant of the access file.
func (w World) SetTenant(m *debvisorv1.Tenant) (store.Change, error) {
	name := m.GetName()
	if t, ok := w.Policy.Tenant(w.Snapshot, name); ok && t.Source == authz.SourceFile {
		return store.Change{}, w.inFile("tenant", name)
	}
	record := &storev1.Tenant{Description: m.GetDescription()}
	for i, s := range m.GetStorage() {
		field := fmt.Sprintf("storage[%d]", i)
		own, err := storageRecord(field, s)
		if err != nil {
			return store.Change{}, err
		}
		for _, other := range record.GetStorage() {
			if overlaps(own, other) {
				return store.Change{}, errdefs.Field(field, place(own), "each storage once, with all below it: "+place(other)+" is said already")
			}
		}
		if err := w.unowned(name, own); err != nil {
			return store.Change{}, err
		}
		record.Storage = append(record.Storage, own)
	}
	c := w.begin()
	put(c, store.TenantKey(name), w.Tenants, name, record)
	return *c, nil
}

// unowned refuses storage of which another tenant has a part.
func (w World) unowned(tenant string, own *storev1.TenantStorage) error {
	for _, other := range w.Policy.Tenants(w.Snapshot) {
		for _, s := range other.Value.GetStorage() {
			if other.Name != tenant && overlaps(own, s) {
				return errdefs.New(errdefs.FailedPrecondition, "STORAGE_OF_ANOTHER_TENANT",
					"%s cannot be tenant %s's: %s is tenant %s's", place(own), tenant, place(s), other.Name).
					With("tenant", other.Name).With("storage", place(s))
			}
		}
	}
	return nil
}

// storageRecord is a tenant's storage as it is kept.
func storageRecord(field string, m *debvisorv1.TenantStorage) (*storev1.TenantStorage, error) {
	s := &storev1.TenantStorage{Backend: backendZFS, Pool: m.GetPool(), Name: m.GetName()}
	accepted := "a dataset below the pool, such as vms/acme; empty for the whole pool"
	if m.GetBackend() == debvisorv1.StorageBackend_BACKEND_RBD {
		s.Backend, accepted = backendRBD, "a namespace of the pool; empty for the whole pool"
	}
	bad := func(r rune) bool { return r <= ' ' || r > '~' || r == '@' || r == '#' }
	if strings.ContainsFunc(s.GetPool(), bad) || strings.Contains(s.GetPool(), "/") {
		return nil, errdefs.Field(field+".pool", s.GetPool(), "a pool's name, without '/' and what lies below it")
	}
	parts := strings.Split(s.GetName(), "/")
	if s.GetName() != "" && (strings.ContainsFunc(s.GetName(), bad) || slices.Contains(parts, "") || s.GetBackend() == backendRBD && len(parts) > 1) {
		return nil, errdefs.Field(field+".name", s.GetName(), accepted)
	}
	return s, nil
}

// overlaps tells whether one of two storages is, or lies in, the other.
func overlaps(a, b *storev1.TenantStorage) bool {
	if a.GetBackend() != b.GetBackend() || a.GetPool() != b.GetPool() {
		return false
	}
	return holds(a.GetName(), b.GetName()) || holds(b.GetName(), a.GetName())
}

// holds tells whether a dataset or namespace is, or lies in, another one; the
// empty name is that of the pool.
func holds(outer, inner string) bool {
	return outer == "" || outer == inner || strings.HasPrefix(inner, outer+"/")
}

func place(s *storev1.TenantStorage) string {
	return s.GetBackend() + ":" + strings.TrimSuffix(s.GetPool()+"/"+s.GetName(), "/")
}

// DeleteTenant takes a tenant away that nobody belongs to any more: no principal
// (and with it no key) and no VM. VMs that no node has any more do not count:
// should one come back, no confined caller sees it.
func (w World) DeleteTenant(name string) (store.Change, error) {
	t, err := w.findTenant(name)
	switch {
	case err != nil:
		return store.Change{}, err
	case t.Source == authz.SourceFile:
		return store.Change{}, w.inFile("tenant", name)
	}
	var left []string
	for _, p := range w.Policy.Principals(w.Snapshot) {
		if p.Value.GetTenant() == name {
			left = append(left, "principal "+p.Name)
		}
	}
	for _, vm := range w.vmsOf(name) {
		left = append(left, "VM "+vm)
	}
	if len(left) > 0 {
		return store.Change{}, errdefs.New(errdefs.FailedPrecondition, "TENANT_IN_USE",
			"tenant %q cannot be deleted while something belongs to it: %s", name, some(left)).With("tenant", name)
	}
	c := w.begin()
	drop(c, store.TenantKey(name), w.Tenants, name)
	return *c, nil
}

// vmsOf are the names of a tenant's VMs, in order.
func (w World) vmsOf(tenant string) []string {
	var names []string
	for _, entry := range w.VMs {
		if cluster.TenantOf(entry.Value) == tenant {
			names = append(names, entry.Value.GetName())
		}
	}
	slices.Sort(names)
	return names
}
