package migrate

import (
	"fmt"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
)

// refusals puts into the audit log what the target's end of the tunnel did not
// let in; nil: nothing that is not there yet. Our own agents and libvirt ask for
// nothing that is refused: whoever did has the key of the source's agent.
func (m *migration) refusals() *step {
	p := m.receive.progress.GetMigrateReceive()
	if p.GetRefused() <= m.m.GetRefused() {
		return nil
	}
	m.m.Refused = p.GetRefused()
	reason := fmt.Sprintf("the tunnel for VM %s to %s has refused %d requests, the last: %s",
		m.m.GetVmName(), m.m.GetTarget(), p.GetRefused(), p.GetRefusedLast())
	s := m.step(stepRefused, reason)
	s.audit = &audit.Event{
		Time: m.now, Kind: audit.PermissionDenied, TraceID: m.op.GetTraceId(), Principal: "agent:" + m.m.GetSource(),
		Method: "tunnel/" + m.m.GetTarget(), Code: "PermissionDenied", Error: "TUNNEL_REFUSED", Reason: reason, Operation: m.op.GetId(),
	}
	return s
}
