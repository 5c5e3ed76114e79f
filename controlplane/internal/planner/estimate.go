package planner

import debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"

// What moves take besides the copying, milliseconds, as measured in the lab
// (docs/benchmarks.md) or, for guests that shut down and start, as usual.
const (
	overheadMS     = 1500
	switchMS       = 250
	shutdownMS     = 15_000
	startMS        = 2_000
	maxDowntimeMS  = 300
	mostIterations = 30
)

const (
	// converges is the share of the link that a guest may dirty for its
	// migration to end by itself.
	converges = 0.8
	// throttled is the share that auto-converge is taken to bring it down to.
	throttled = 0.5
)

// estimateBy tells what a move takes, its ZFS volumes copied whole or in
// increments. Durations are 0 where the link is unknown, or where the migration
// does not end by itself and may not be helped to.
func (w *World) estimateBy(m *mover, to *host, method debvisorv1.MoveMethod, increments bool) *debvisorv1.MoveEstimate {
	e := &debvisorv1.MoveEstimate{DirtyBytesPerSecond: m.domain.GetDirtyBytesPerSecond()}
	if m.guest.at != nil {
		e.LinkBytesPerSecond = w.link(m.guest.at, to, m.request.Options)
	}
	var disks uint64
	for _, d := range m.disks {
		if apart := increments && d.volume && !d.GetReadOnly(); d.copied && !apart {
			disks += d.bytes()
		}
	}
	meanwhile := uint64(shutdownMS)
	if method == offline {
		m.offlineEstimate(e, disks)
	} else {
		m.liveEstimate(e, disks)
		meanwhile = e.GetDurationMs()
	}
	if increments {
		m.addIncrements(e, meanwhile, method == offline && !m.guest.active())
	}
	return e
}

// offlineEstimate is for a guest that stands still from its shutdown until it
// is started again.
func (m *mover) offlineEstimate(e *debvisorv1.MoveEstimate, disks uint64) {
	e.Bytes, e.DirtyBytesPerSecond = disks, 0
	if e.GetLinkBytesPerSecond() == 0 && disks > 0 {
		return
	}
	e.DurationMs = overheadMS + transfer(disks, e.GetLinkBytesPerSecond())
	if m.takes {
		e.DurationMs += shutdownMS + startMS
		e.DowntimeMs = e.GetDurationMs()
	}
}

// liveEstimate is for memory that is copied in rounds, each as long as what the
// one before left to be copied again.
func (m *mover) liveEstimate(e *debvisorv1.MoveEstimate, disks uint64) {
	memory := m.guest.memory
	e.Bytes = memory + disks
	link, dirty := float64(e.GetLinkBytesPerSecond()), float64(e.GetDirtyBytesPerSecond())
	if link == 0 {
		return
	}
	if dirty > converges*link {
		e.NeedsAutoConverge = true
		if m.request.Options.GetNoAutoConverge() {
			return
		}
		dirty = throttled * link
	}
	pause := float64(m.request.Options.GetMaxDowntimeMs())
	if pause == 0 {
		pause = maxDowntimeMS
	}
	left, copied := float64(memory), 0.
	for range mostIterations {
		copied += left
		left *= dirty / link
		if left <= link*pause/1000 {
			break
		}
	}
	copied += left
	e.Bytes = uint64(copied) + disks
	e.DurationMs = overheadMS + transfer(e.GetBytes(), e.GetLinkBytesPerSecond())
	e.DowntimeMs = switchMS + uint64(left/link*1000)
}

// transfer is how long bytes take, milliseconds.
func transfer(bytes, perSecond uint64) uint64 {
	if bytes == 0 || perSecond == 0 {
		return 0
	}
	return uint64(float64(bytes) / float64(perSecond) * 1000)
}

// whole is the estimate of moves in waves. Moves of one wave that share a node
// share its link.
func whole(moves []Move) *debvisorv1.MoveEstimate {
	e := &debvisorv1.MoveEstimate{}
	known := true
	waves := map[int]map[string]uint64{}
	for _, m := range moves {
		e.Bytes += m.Estimate.GetBytes()
		e.DowntimeMs = max(e.GetDowntimeMs(), m.Estimate.GetDowntimeMs())
		e.NeedsAutoConverge = e.GetNeedsAutoConverge() || m.Estimate.GetNeedsAutoConverge()
		known = known && m.Estimate.GetDurationMs() > 0
		if waves[m.Wave] == nil {
			waves[m.Wave] = map[string]uint64{}
		}
		waves[m.Wave][m.Source] += copying(m)
		waves[m.Wave][m.Target] += copying(m)
		waves[m.Wave][""] = max(waves[m.Wave][""], m.Estimate.GetDurationMs()-copying(m))
	}
	if !known {
		return e
	}
	for _, busy := range waves {
		var longest uint64
		for node, ms := range busy {
			if node != "" {
				longest = max(longest, ms)
			}
		}
		e.DurationMs += busy[""] + longest
	}
	return e
}

// copying is the part of a move's duration for which it uses the link.
func copying(m Move) uint64 {
	return min(transfer(m.Estimate.GetBytes(), m.Estimate.GetLinkBytesPerSecond()), m.Estimate.GetDurationMs())
}
