package migration

import (
	"context"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// TestNoGuestIsStartedAfterABoot: an offline move that was under way when the host
// lost its power starts nothing once it is back; in the boot of its own it would.
func TestNoGuestIsStartedAfterABoot(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel() // libvirt is not waited for
	for boot, restarted := range map[string]bool{"earlier": true, "now": false} {
		j := &journal{marks: []string{worker.MarkBoot, worker.MarkBoot + " " + boot}}
		m := &Migration{cfg: Config{BootID: "now", Hypervisor: hypervisor.New(hypervisor.Config{URI: "test:///none"})}}
		h := &half{m: m, run: j, right: &agentv1.MigrationRight{VmUuid: "u", VmName: "web"}}
		err := h.startStep(gone, hypervisor.Sighting{State: shutoff})
		if err == nil || strings.Contains(err.Error(), "restarted") != restarted {
			t.Errorf("%s: %v", boot, err)
		}
	}
}
