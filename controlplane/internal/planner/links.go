package planner

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// leastSample is how many bytes a migration must have copied to tell of the
	// link; with less it is the overhead that is measured.
	leastSample = 64 << 20
	// samples is how many migrations are looked at, the last ones.
	samples = 5
	mib     = 1 << 20
)

// links is what past migrations tell of the links between nodes, bytes a second.
type links struct {
	// between is by source and target, of a node alone.
	between map[[2]string]uint64
	of      map[string]uint64
}

// learn reads the migrations that ended well. Those that were limited, or had
// to wait for a guest to shut down, say nothing of a link.
func learn(s *cluster.Snapshot) *links {
	var past []*storev1.Operation
	for _, entry := range s.Operations {
		m := entry.Value.GetMigrate()
		if entry.Value.GetState() == task.OpSucceeded && m.GetBytes() >= leastSample && m.GetDurationMs() > 0 &&
			debvisorv1.MoveMethod(m.GetMethod()) != offline && !limited(m) {
			past = append(past, entry.Value)
		}
	}
	slices.SortFunc(past, func(a, b *storev1.Operation) int { // the last first
		return cmp.Or(b.GetEndedAt().AsTime().Compare(a.GetEndedAt().AsTime()), cmp.Compare(a.GetId(), b.GetId()))
	})
	between, of := map[[2]string][]uint64{}, map[string][]uint64{}
	for _, op := range past {
		m := op.GetMigrate()
		speed := perSecond(m.GetBytes(), m.GetDurationMs())
		note(between, [2]string{m.GetSource(), m.GetTarget()}, speed)
		note(of, m.GetSource(), speed)
		note(of, m.GetTarget(), speed)
	}
	return &links{medians(between), medians(of)}
}

// note keeps the first few.
func note[K comparable](speeds map[K][]uint64, key K, speed uint64) {
	if len(speeds[key]) < samples {
		speeds[key] = append(speeds[key], speed)
	}
}

func medians[K comparable](speeds map[K][]uint64) map[K]uint64 {
	middle := make(map[K]uint64, len(speeds))
	for key, all := range speeds {
		slices.Sort(all)
		middle[key] = all[len(all)/2]
	}
	return middle
}

func limited(m *storev1.Migrate) bool {
	var options debvisorv1.MigrateOptions
	return proto.Unmarshal(m.GetOptions(), &options) != nil || options.GetBandwidthMib() > 0
}

func perSecond(bytes, ms uint64) uint64 { return uint64(float64(bytes) / float64(ms) * 1000) }

// speed is what the link between two nodes was measured to do, bytes a second:
// the median of the last migrations between the two, else the less of those
// that each of them took part in; 0: there were none.
func (l *links) speed(source, target string) uint64 {
	if speed := l.between[[2]string{source, target}]; speed > 0 {
		return speed
	}
	return least(l.of[source], l.of[target])
}

// link is what a migration between two nodes gets, bytes a second; 0: unknown.
func (w *World) link(source, target *host, options *debvisorv1.MigrateOptions) uint64 {
	if w.links == nil {
		w.links = learn(w.snapshot)
	}
	speed := w.links.speed(source.id, target.id)
	if speed == 0 {
		speed = least(source.caps.GetLinkBytesPerSecond(), target.caps.GetLinkBytesPerSecond())
	}
	return least(
		speed, options.GetBandwidthMib()*mib,
		source.node.GetMigrationBandwidthMib()*mib, target.node.GetMigrationBandwidthMib()*mib,
	)
}

// least is the smallest of the values that are not 0; 0: there is none.
func least(values ...uint64) uint64 {
	var min uint64
	for _, v := range values {
		if v > 0 && (min == 0 || v < min) {
			min = v
		}
	}
	return min
}
