package inventory

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
)

// nodeRecord is a record of a node's.
type nodeRecord interface {
	proto.Message
	GetNode() string
}

// writeEach writes the records, and deletes those of nodes that have gone, each
// under its key, in as many transactions as it takes. The nodes of those that
// etcd does not take are given back.
func writeEach[M nodeRecord](
	ctx context.Context, c Committer, l election.Leadership, key func(node string) string, records []M, gone []string, giveBack func(nodes []string),
) error {
	for len(records)+len(gone) > 0 {
		chunk := firstChunk(records)
		change := store.Change{Fence: l.Fence}
		for _, r := range chunk {
			change.Puts = append(change.Puts, store.PutProto(key(r.GetNode()), r))
		}
		few := gone[:min(len(gone), chunkRecords)]
		for _, node := range few {
			change.Deletes = append(change.Deletes, key(node))
		}
		if _, err := c.Commit(ctx, change); err != nil {
			for _, r := range records {
				gone = append(gone, r.GetNode())
			}
			giveBack(gone)
			return err
		}
		records, gone = records[len(chunk):], gone[len(few):]
	}
	return nil
}
