package planner

import (
	"cmp"
	"slices"
	"time"

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

// sample is how fast one migration was.
type sample struct {
	source, target string
	// speed is bytes a second.
	speed uint64
	ended time.Time
}

// links is what past migrations tell of the links between nodes.
type links struct{ past []sample }

// learn reads the migrations that ended well. Those that were limited, or had
// to wait for a guest to shut down, say nothing of a link.
func learn(s *cluster.Snapshot) *links {
	l := &links{}
	for _, entry := range s.Operations {
		op, m := entry.Value, entry.Value.GetMigrate()
		if op.GetState() != task.OpSucceeded || m.GetBytes() < leastSample || m.GetDurationMs() == 0 ||
			debvisorv1.MoveMethod(m.GetMethod()) == offline || limited(m) {
			continue
		}
		l.past = append(l.past, sample{m.GetSource(), m.GetTarget(), perSecond(m.GetBytes(), m.GetDurationMs()), op.GetEndedAt().AsTime()})
	}
	slices.SortFunc(l.past, func(a, b sample) int {
		return cmp.Or(b.ended.Compare(a.ended), cmp.Compare(b.speed, a.speed))
	})
	return l
}

func limited(m *storev1.Migrate) bool {
	var options debvisorv1.MigrateOptions
	return proto.Unmarshal(m.GetOptions(), &options) != nil || options.GetBandwidthMib() > 0
}

func perSecond(bytes, ms uint64) uint64 { return uint64(float64(bytes) / float64(ms) * 1000) }

// speed is what the link between two nodes was measured to do, bytes a second:
// the median of the last migrations between the two, else of those that one of
// the two took part in; 0: there were none.
func (l *links) speed(source, target string) uint64 {
	for _, about := range []func(sample) bool{
		func(s sample) bool { return s.source == source && s.target == target },
		func(s sample) bool { return s.source == source || s.target == target },
	} {
		var speeds []uint64
		for _, s := range l.past {
			if len(speeds) < samples && about(s) {
				speeds = append(speeds, s.speed)
			}
		}
		if len(speeds) > 0 {
			slices.Sort(speeds)
			return speeds[len(speeds)/2]
		}
	}
	return 0
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
