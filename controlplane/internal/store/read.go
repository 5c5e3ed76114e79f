package store

import (
	"context"
	"fmt"
)

// Read reads a record as it stands in etcd, by a linearizable read, and the
// revision of its last change; 0 where there is none. It is for what must not
// lose what a snapshot does not hold. Its errors are those of Commit.
func (s *Store) Read(ctx context.Context, key string) (value []byte, modRevision int64, err error) {
	bounded, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	resp, err := s.client.Get(bounded, key)
	if err != nil {
		return nil, 0, fmt.Errorf("reading %s: %w", key, refused(ctx, err))
	}
	if len(resp.Kvs) == 0 {
		return nil, 0, nil
	}
	return resp.Kvs[0].Value, resp.Kvs[0].ModRevision, nil
}
