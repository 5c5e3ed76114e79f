package store

import (
	"context"
	"errors"

	clientv3 "go.etcd.io/etcd/client/v3"
)

type transaction struct {
	compares      []clientv3.Cmp
	then, otherwise []clientv3.Op
}

func (c Change) transaction() (transaction, error) { return transaction{}, nil }

func (s *Store) commit(ctx context.Context, c Change, t transaction) (int64, error) {
	return 0, errors.New("not yet")
}
