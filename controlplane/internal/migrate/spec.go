package migrate

import (
	"cmp"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// What options mean that were not given.
const (
	defaultDeadline = 24 * time.Hour
	defaultStall    = 2 * time.Minute
	defaultShutdown = 2 * time.Minute
)

// options are the caller's; the API has seen to their ranges.
func (m *migration) options() *debvisorv1.MigrateOptions {
	o := &debvisorv1.MigrateOptions{}
	if err := proto.Unmarshal(m.m.GetOptions(), o); err != nil {
		o.Reset()
	}
	return o
}

// When several streams of memory are worth their threads: on a link that one
// CPU's encryption does not fill, between hosts with CPUs to spare, for guests
// whose copy takes long enough.
const (
	goodStreams   = 4
	streamsLink   = 1_250_000_000 // bytes a second: 10 Gbit/s
	streamsCPUs   = 8
	streamsMemory = 8 << 30
)

// chooseStreams fixes in how many streams memory goes, where the caller did not
// say: both ends must be told the same, whatever the nodes report meanwhile.
func (m *migration) chooseStreams(vm *storev1.VM) {
	o := m.options()
	if o.GetParallelConnections() > 0 || m.offline() {
		return
	}
	o.ParallelConnections = 1
	if m.streamsHelp(vm) {
		o.ParallelConnections = goodStreams
	}
	m.m.Options = encoded(o)
}

// streams is what the agents are told; 0: the one that QEMU has anyway.
func (m *migration) streams() uint32 {
	if n := m.options().GetParallelConnections(); n > 1 {
		return n
	}
	return 0
}

func (m *migration) streamsHelp(vm *storev1.VM) bool {
	domain := &agentv1.Domain{}
	if err := proto.Unmarshal(vm.GetDomain(), domain); err != nil || domain.GetMemoryBytes() < streamsMemory {
		return false
	}
	for _, node := range []string{m.m.GetSource(), m.m.GetTarget()} {
		status := m.snapshot.Statuses[node].Value
		can, has := &debvisorv1.NodeCapabilities{}, &debvisorv1.NodeCapacity{}
		if proto.Unmarshal(status.GetCapabilities(), can) != nil || proto.Unmarshal(status.GetCapacity(), has) != nil {
			return false
		}
		if can.GetLinkBytesPerSecond() < streamsLink || has.GetCpus() < streamsCPUs {
			return false
		}
	}
	limit := min(cmp.Or(m.options().GetBandwidthMib(), math.MaxUint64), cmp.Or(m.nodeBandwidth(), math.MaxUint64))
	return limit >= streamsLink>>20
}

func (m *migration) offline() bool {
	return debvisorv1.MoveMethod(m.m.GetMethod()) == debvisorv1.MoveMethod_MOVE_METHOD_OFFLINE
}

// disks are those of the attempt at work.
func (m *migration) disks() ([]*agentv1.DiskTransfer, error) {
	var out []*agentv1.DiskTransfer
	for _, b := range m.m.GetDisks() {
		d := &agentv1.DiskTransfer{}
		if err := proto.Unmarshal(b, d); err != nil {
			return nil, fmt.Errorf("the disks of the migration cannot be read: %w", err)
		}
		out = append(out, d)
	}
	return out, nil
}

// sendSpec is what the source is told.
func (m *migration) sendSpec() (*agentv1.MigrateSend, error) {
	right := &agentv1.MigrationRight{}
	if err := proto.Unmarshal(m.m.GetRight(), right); err != nil {
		return nil, fmt.Errorf("the right of the migration cannot be read: %w", err)
	}
	disks, err := m.disks()
	if err != nil {
		return nil, err
	}
	o := m.options()
	return &agentv1.MigrateSend{
		Right: right, TargetPeerAddress: m.peerAddress(m.m.GetTarget()),
		TunnelAddress: m.receive.progress.GetMigrateReceive().GetTunnelAddress(), Resume: m.m.GetWasRunning(),
		Disks: disks, Offline: m.offline(),
		BandwidthMib: o.GetBandwidthMib(), NodeBandwidthMib: m.nodeBandwidth(), MaxDowntimeMs: uint64(o.GetMaxDowntimeMs()),
		ParallelConnections: m.streams(), AutoConverge: !o.GetNoAutoConverge(),
		DeadlineMs:      milliseconds(o.GetDeadlineSeconds(), defaultDeadline),
		PauseAtDeadline: o.GetOnDeadline() == debvisorv1.DeadlineAction_DEADLINE_ACTION_PAUSE,
		StallMs:         milliseconds(o.GetStallSeconds(), defaultStall),
		ShutdownMs:      milliseconds(o.GetShutdownSeconds(), defaultShutdown),
	}, nil
}

// nodeBandwidth is what the migrations that leave the source may take together,
// MiB/s; 0: no limit. The target's limit counts too.
func (m *migration) nodeBandwidth() uint64 {
	from := m.snapshot.Nodes[m.m.GetSource()].Value.GetMigrationBandwidthMib()
	to := m.snapshot.Nodes[m.m.GetTarget()].Value.GetMigrationBandwidthMib()
	if from == 0 || to == 0 {
		return max(from, to)
	}
	return min(from, to)
}

func milliseconds(seconds uint32, otherwise time.Duration) uint64 {
	return uint64(cmp.Or(time.Duration(seconds)*time.Second, otherwise).Milliseconds())
}

// encoded is nil for a message that cannot be encoded, which these always can.
func encoded(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil
	}
	return b
}
