package planner

import (
	"cmp"
	"fmt"
	"time"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	// lastMS is what the last snapshots of ZFS volumes take while the guest stands
	// still, besides their bytes: taken, sent, received and looked at.
	lastMS = 600
	// roundMS is the same of those that are sent while it runs; littleLeft is when
	// these come to their end, as do those that no longer shrink to that share.
	roundMS    = 400
	littleLeft = 8 << 20
	shrinks    = 0.7
	mostRounds = 12
	// standstillWeighs is how many seconds of copying a second is worth for which a
	// guest stands still.
	standstillWeighs = 20
)

// way is how a VM's ZFS volumes go to a node: copied whole, or in increments of
// ZFS's snapshots; and why so. The zero way is of a VM that has none to choose for.
type way struct {
	increments bool
	reason     string
}

// volumes are the ZFS volumes that may go in increments: all that are written to.
func (m *mover) volumes() []disk {
	var volumes []disk
	for _, d := range m.disks {
		if d.volume && !d.GetReadOnly() {
			volumes = append(volumes, d)
		}
	}
	return volumes
}

// whyWhole tells why a volume can only be copied whole; empty: it need not be.
// While the guest runs the rule is libvirt's own, as for disks that two hosts share.
func (d disk) whyWhole(method debvisorv1.MoveMethod) string {
	switch mode := d.GetCache(); {
	case d.origin.GetEncrypted():
		return "disk " + d.GetTarget() + " is encrypted by ZFS"
	case method == liveCopy && mode != "none" && mode != "directsync":
		return "disk " + d.GetTarget() + " has cache mode " + cmp.Or(mode, "default") + " (none or directsync is needed for increments)"
	}
	return ""
}

// estimate tells what a move takes, and how the VM's ZFS volumes go: as it is
// estimated to be cheaper.
func (w *World) estimate(m *mover, to *host, method debvisorv1.MoveMethod) (*debvisorv1.MoveEstimate, way) {
	whole := w.estimateBy(m, to, method, false)
	volumes := m.volumes()
	if len(volumes) == 0 || method != liveCopy && method != offline {
		return whole, way{}
	}
	for _, d := range volumes {
		if why := d.whyWhole(method); why != "" {
			return whole, way{false, "copied whole, as " + why}
		}
	}
	increments := w.estimateBy(m, to, method, true)
	switch {
	case cost(increments) <= cost(whole):
		return increments, way{true, "in increments of ZFS's snapshots: " + worded(increments) + "; copied whole: " + worded(whole)}
	default:
		return whole, way{false, "copied whole: " + worded(whole) + "; in increments of ZFS's snapshots: " + worded(increments)}
	}
}

// cost makes estimates comparable: time, and standstill much more. Of an unknown
// link only bytes are known.
func cost(e *debvisorv1.MoveEstimate) uint64 {
	if e.GetDurationMs() == 0 {
		return e.GetBytes()
	}
	return e.GetDurationMs() + standstillWeighs*e.GetDowntimeMs()
}

func worded(e *debvisorv1.MoveEstimate) string {
	text := size(e.GetBytes())
	if e.GetDurationMs() > 0 {
		text += fmt.Sprintf(" in %s, %s of standstill", brief(e.GetDurationMs()), brief(e.GetDowntimeMs()))
	}
	return text
}

func brief(ms uint64) string {
	return (time.Duration(ms) * time.Millisecond).Round(100 * time.Millisecond).String()
}

// addIncrements adds to the estimate of a move, made without its volumes, what
// these take in increments. Of a guest's writes ZFS makes up to twice as much, as its
// blocks are larger. Where they are not known, it is taken to write what it dirties:
// what goes to disks is in memory first.
func (m *mover) addIncrements(e *debvisorv1.MoveEstimate, memoryMS uint64, stopped bool) {
	var first, most float64
	for _, d := range m.volumes() {
		first += float64(d.origin.GetReferencedBytes())
		most += float64(d.origin.GetVolumeBytes())
	}
	link, written := float64(e.GetLinkBytesPerSecond()), float64(m.domain.GetDirtyBytesPerSecond())
	if n := m.domain.GetWrittenBytesPerSecond(); n > 0 {
		written = 2 * float64(n)
	}
	if stopped {
		written = 0
	}
	sent, rounds, left := first, 1, first
	if link > 0 && !stopped {
		for ; rounds < mostRounds; rounds++ {
			next := min(left*written/link+written*roundMS/1000, most)
			if next <= littleLeft || rounds > 1 && next > shrinks*left {
				break
			}
			left = next
			sent += left
		}
	}
	last := 0.
	if link > 0 {
		last = min(left*written/link+written*float64(memoryMS)/1000, most)
	}
	e.Bytes += uint64(sent + last)
	if link == 0 || e.GetDurationMs() == 0 {
		e.DurationMs, e.DowntimeMs = 0, 0
		return
	}
	e.DurationMs += uint64(rounds)*roundMS + lastMS + transfer(uint64(sent+last), e.GetLinkBytesPerSecond())
	if !stopped {
		e.DowntimeMs += lastMS + transfer(uint64(last), e.GetLinkBytesPerSecond())
	}
}
