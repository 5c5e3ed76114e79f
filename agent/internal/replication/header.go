package replication

import (
	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const headerSize = zfs.StreamHeaderSize

// header is what a stream says of itself.
type header struct{ zfs.StreamHeader }

// readHeader reads a stream's first record.
func readHeader(p []byte) (header, error) {
	h, err := zfs.ReadStreamHeader(p)
	return header{h}, err
}

// check refuses every stream but the one that is planned.
func (h header) check(spec *agentv1.ReplicateReceive, step *agentv1.ReplicationStep) error {
	return h.Check(zfs.PlannedStream{
		To: step.GetTo(), ToGUID: step.GetToGuid(), FromGUID: step.GetFromGuid(),
		Raw: spec.GetRaw(), Volume: spec.GetType() == agentv1.ZfsType_ZFS_TYPE_VOLUME,
	})
}
