package controlplane

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// A replica whose own disk fills while it runs says so, refuses changes and
// answers reads until there is room again.
func TestTheDiskFillsWhileItRuns(t *testing.T) {
	var left atomic.Uint64
	left.Store(1 << 40)
	r := newReplica(t)
	r.cfg.room = func(dir string) (uint64, error) {
		if dir != r.cfg.DataDir {
			t.Errorf("asked of %s", dir)
		}
		return left.Load(), nil
	}
	r.cfg.MetricsListen = storetest.FreeAddress(t)
	r.start()
	operator := r.dial(r.cfg.Listen, r.home.Operator())
	r.awaitLeader(operator)
	change := func() *errdefs.Error {
		_, err := debvisorv1.NewAccessServiceClient(operator).SetPrincipal(r.within(), &debvisorv1.Principal{Name: "vera", Type: "user", Roles: []string{"viewer"}})
		return errdefs.FromStatus(err)
	}
	client := r.https(certs.Pair{})
	ready := func(want string) {
		t.Helper()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		late := time.After(patience)
		for got := ""; ; {
			if got = r.get(client, "GET", r.cfg.MetricsListen+"/readyz"); strings.HasPrefix(got, want) {
				return
			}
			select {
			case <-tick.C:
			case <-late:
				t.Fatalf("/readyz: %q, want %q", got, want)
			}
		}
	}
	ready("200")
	if e := change(); e != nil {
		t.Fatal(e)
	}
	left.Store(32 << 20)
	ready("503 not ready\ndisk: the disk of the data directory is almost full, so that changes are refused: 32 MiB are left")
	if e := change(); e == nil || e.Kind != errdefs.Unavailable || e.Code != "DISK_FULL" || e.RetryAfter == 0 {
		t.Errorf("a change: %v", e)
	}
	if _, err := debvisorv1.NewNodeServiceClient(operator).ListNodes(r.within(), &debvisorv1.Empty{}); err != nil {
		t.Errorf("a read: %v", err)
	}
	left.Store(1 << 40)
	ready("200")
	if e := change(); e != nil {
		t.Errorf("a change once there is room: %v", e)
	}
}
