package store

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/shared/task"
)

// pageTimeout is how long one page of the list may take.
const pageTimeout = 10 * time.Second

// list reads everything at one revision, page by page, makes a snapshot of it
// and gives the revision.
func (v *View) list(ctx context.Context) (int64, error) {
	sent := v.now()
	draft := cluster.Empty().Draft()
	var revision int64
	for from, more := prefix, true; more; {
		page, err := v.page(ctx, from, revision)
		if err != nil {
			return 0, err
		}
		if revision == 0 {
			revision = page.Header.Revision
		}
		for _, kv := range page.Kvs {
			v.apply(draft, kv, false)
			from = string(kv.Key) + "\x00"
		}
		more = page.More
	}
	was, is := v.Current(), draft.Snapshot(revision)
	v.publish(is)
	v.tellEndings(endedSince(was, is))
	v.wasTrueAt(sent)
	v.once.Do(func() { close(v.ready) })
	return revision, nil
}

// endedSince finds the operations that have ended between two snapshots.
func endedSince(was, is *cluster.Snapshot) (e cluster.Endings) {
	for _, op := range was.ActiveOperations() {
		if now, ok := is.Operations[op.Value.GetId()]; ok && task.OpEnded(now.Value.GetState()) {
			e.Operations = append(e.Operations, now.Value)
		}
	}
	return e
}

// page reads what follows a key; revision 0 is the latest, by a linearizable
// read.
func (v *View) page(ctx context.Context, from string, revision int64) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	return v.client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)),
		clientv3.WithLimit(pageSize), clientv3.WithRev(revision))
}
