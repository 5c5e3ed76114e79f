package plans

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// A record takes 1 MiB at most, and many plans are kept at a time.
const (
	// nodesBytes bounds the verdicts on nodes of one plan.
	nodesBytes = 48 << 10
	// mostMoves and mostBlocked bound the lists of a plan of many moves: as
	// much as the operation that carries it out can hold, too.
	mostMoves   = 1000
	mostBlocked = 1000
	// blockedBytes bounds the VMs that cannot move.
	blockedBytes = 64 << 10
	// textBytes bounds each text.
	textBytes = 1 << 10
)

// clipMigration shortens a result: the worst nodes are left out first, the
// target never.
func clipMigration(m *debvisorv1.MigrationPlanResult) {
	m.Message = clip(m.GetMessage(), 8*textBytes)
	clipReasons(m.GetNotLive())
	var kept []*debvisorv1.NodeVerdict
	left := nodesBytes
	for _, n := range m.GetNodes() {
		clipReasons(n.GetReasons())
		size := proto.Size(n)
		if left < size && nodeID(n.GetNode()) != nodeID(m.GetTarget()) {
			left = 0 // those that are worse are not shown either
			continue
		}
		left -= size
		kept = append(kept, n)
	}
	m.NodesLeftOut = uint32(len(m.GetNodes()) - len(kept))
	m.Nodes = kept
}

// clipMoves shortens a plan of many moves: the later ones are left out, which
// leaves a plan that can be carried out.
func clipMoves(m *debvisorv1.MovePlan) {
	if n := len(m.GetMoves()); n > mostMoves {
		m.MovesLeftOut = uint32(n - mostMoves)
		m.Moves = m.GetMoves()[:mostMoves]
	}
	left := blockedBytes
	for _, b := range m.GetBlocked() {
		clipReasons(b.GetReasons())
	}
	at := slices.IndexFunc(m.GetBlocked(), func(b *debvisorv1.BlockedVM) bool {
		left -= proto.Size(b)
		return left < 0
	})
	if at < 0 {
		at = len(m.GetBlocked())
	}
	at = min(at, mostBlocked)
	m.BlockedLeftOut = uint32(len(m.GetBlocked()) - at)
	m.Blocked = m.GetBlocked()[:at]
}

func clipReasons(list []*debvisorv1.PlanReason) {
	for _, r := range list {
		r.Message = clip(r.GetMessage(), textBytes)
	}
}

// clip shortens a text to so many bytes.
func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
