package store

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// commitTimeout is how long etcd may take to answer one transaction.
const commitTimeout = 4 * time.Second

// maxChangeBytes leaves room under etcd's limit of 1.5 MiB for one request.
const maxChangeBytes = 1_400_000

// opBytes is more than what a key costs in a request besides its own bytes.
const opBytes = 32

// transaction is a Change in etcd's words.
type transaction struct {
	compares []clientv3.Cmp
	then     []clientv3.Op
	// orElse reads, at the revision of the comparison, all that was compared:
	// the fence's key and the epoch first, where there is a fence.
	orElse []clientv3.Op
}

// transaction checks that the change can be applied at all and translates it.
func (c Change) transaction() (transaction, error) {
	if err := c.check(); err != nil {
		return transaction{}, err
	}
	var t transaction
	if c.Fence != nil {
		t.compares = append(t.compares,
			clientv3.Compare(clientv3.CreateRevision(c.Fence.Key), "=", c.Fence.Term.Revision),
			clientv3.Compare(clientv3.Value(EpochKey()), "=", formatEpoch(c.Fence.Term.Epoch)))
		t.orElse = append(t.orElse,
			clientv3.OpGet(c.Fence.Key, clientv3.WithKeysOnly()), clientv3.OpGet(EpochKey()))
	}
	for _, cond := range c.Require {
		t.compares = append(t.compares, clientv3.Compare(clientv3.ModRevision(cond.key), "=", cond.modRevision))
		t.orElse = append(t.orElse, clientv3.OpGet(cond.key, clientv3.WithKeysOnly()))
	}
	for _, p := range c.Puts {
		t.then = append(t.then, clientv3.OpPut(p.key, string(p.value)))
	}
	for _, key := range c.Deletes {
		t.then = append(t.then, clientv3.OpDelete(key))
	}
	return t, nil
}

// check finds what makes a change impossible whatever the state of etcd.
func (c Change) check() error {
	if n := len(c.Puts) + len(c.Deletes); n > MaxChangeOps {
		return tooLarge("a change holds at most %d puts and deletes, this one has %d", MaxChangeOps, n)
	}
	if n := len(c.Require); n > MaxChangeOps {
		return tooLarge("a change holds at most %d conditions, this one has %d", MaxChangeOps, n)
	}
	if c.Fence != nil && (c.Fence.Key == "" || c.Fence.Term.IsZero()) {
		return fmt.Errorf("a fence without a key or a term: %+v", *c.Fence)
	}
	bytes := 2 * opBytes * len(c.Require)
	for _, cond := range c.Require {
		bytes += 2 * len(cond.key)
	}
	seen := make(map[string]struct{}, len(c.Puts)+len(c.Deletes))
	once := func(key string) error {
		if _, ok := seen[key]; ok {
			return fmt.Errorf("a change names %s twice", key)
		}
		seen[key] = struct{}{}
		return nil
	}
	for _, p := range c.Puts {
		if p.err != nil {
			return p.err
		}
		if len(p.value) > MaxRecordBytes {
			return tooLarge("the record %s has %d bytes; the most is %d", p.key, len(p.value), MaxRecordBytes).With("key", p.key)
		}
		if err := once(p.key); err != nil {
			return err
		}
		bytes += opBytes + len(p.key) + len(p.value)
	}
	for _, key := range c.Deletes {
		if err := once(key); err != nil {
			return err
		}
		bytes += opBytes + len(key)
	}
	if bytes > maxChangeBytes {
		return tooLarge("a change holds at most %d bytes, this one has %d", maxChangeBytes, bytes)
	}
	return nil
}

func (s *Store) commit(ctx context.Context, c Change, t transaction) (int64, error) {
	bounded, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	resp, err := s.client.Txn(bounded).If(t.compares...).Then(t.then...).Else(t.orElse...).Commit()
	if err != nil {
		return 0, refused(ctx, err)
	}
	if !resp.Succeeded {
		return 0, c.failed(resp)
	}
	return resp.Header.Revision, nil
}

// failed tells which comparison did not hold, from what orElse read.
func (c Change) failed(resp *clientv3.TxnResponse) error {
	read := resp.Responses
	if c.Fence != nil {
		if createRevision(read[0]) != c.Fence.Term.Revision || valueOf(read[1]) != formatEpoch(c.Fence.Term.Epoch) {
			return ErrFenced
		}
		read = read[2:]
	}
	for i, cond := range c.Require {
		if modRevision(read[i]) != cond.modRevision {
			return &ConflictError{Key: cond.key}
		}
	}
	return errdefs.New(errdefs.Internal, "INTERNAL", "etcd refused a transaction whose conditions hold")
}

func createRevision(r *etcdserverpb.ResponseOp) int64 {
	if kvs := r.GetResponseRange().GetKvs(); len(kvs) == 1 {
		return kvs[0].CreateRevision
	}
	return 0
}

func modRevision(r *etcdserverpb.ResponseOp) int64 {
	if kvs := r.GetResponseRange().GetKvs(); len(kvs) == 1 {
		return kvs[0].ModRevision
	}
	return 0
}

func valueOf(r *etcdserverpb.ResponseOp) string {
	if kvs := r.GetResponseRange().GetKvs(); len(kvs) == 1 {
		return string(kvs[0].Value)
	}
	return ""
}

func formatEpoch(epoch uint64) string { return strconv.FormatUint(epoch, 10) }
