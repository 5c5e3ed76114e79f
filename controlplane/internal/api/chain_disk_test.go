package api_test

import (
	"sync/atomic"
	"testing"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// fullDisk is etcd's disk, full when a test says so.
type fullDisk struct{ full atomic.Bool }

func (d *fullDisk) Full() error {
	if d.full.Load() {
		return errdefs.New(errdefs.Unavailable, "DISK_FULL", "it is full")
	}
	return nil
}

func TestNothingIsChangedOnAFullDisk(t *testing.T) {
	r := start(t, 1<<30)
	operator := r.principal("operator")
	change := func(name string) *errdefs.Error {
		t.Helper()
		_, err := debvisorv1.NewAccessServiceClient(operator).SetPrincipal(t.Context(), &debvisorv1.Principal{Name: name, Type: "user", Roles: []string{"viewer"}})
		return errdefs.FromStatus(err)
	}
	if e := change("before"); e != nil {
		t.Fatal(e)
	}
	r.disk.full.Store(true)
	if e := change("meanwhile"); e == nil || e.Kind != errdefs.Unavailable || e.Code != "DISK_FULL" {
		t.Errorf("a change: %v", e)
	}
	if e := listOn(t, operator); e != nil {
		t.Errorf("a read: %v", e)
	}
	got, err := r.client.Get(t.Context(), store.PrincipalKey("meanwhile"))
	if err != nil || len(got.Kvs) != 0 {
		t.Errorf("it was written all the same: %v, %v", got.Kvs, err)
	}
	r.disk.full.Store(false)
	if e := change("after"); e != nil {
		t.Errorf("a change once there is room: %v", e)
	}
}
