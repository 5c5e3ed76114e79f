package store

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Store writes. It is safe for use by many goroutines.
type Store struct {
	client *clientv3.Client
}

// New makes a Store that writes through a client, which stays the caller's.
func New(client *clientv3.Client) *Store { return &Store{client: client} }

// Commit applies a change and gives the revision at which it is true. Its
// errors are ErrFenced and *ConflictError (nothing was written),
// InvalidArgument (the change can never be applied), ResourceExhausted (etcd is
// full) and Unavailable: no answer in time, so that it may have been applied.
func (s *Store) Commit(ctx context.Context, c Change) (revision int64, err error) {
	txn, err := c.transaction()
	if err != nil {
		return 0, err
	}
	return s.commit(ctx, c, txn)
}
