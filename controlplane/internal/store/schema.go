package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// SchemaVersion is the form of the records that this program reads and writes.
const SchemaVersion = 1

// prepareFor is how long etcd may take to answer at a start: its members may be
// electing a leader, since the one that was stopped for an upgrade was theirs.
const prepareFor = 20 * time.Second

// Prepare makes a store ready for use: it writes the schema's version and the
// epoch where there are none, and refuses (FailedPrecondition) records of a
// form that this program does not know. An etcd that does not answer at once is
// asked again for 20 s.
func (s *Store) Prepare(ctx context.Context) error {
	for begun := time.Now(); ; {
		err := s.prepare(ctx)
		if !errdefs.Is(err, errdefs.Unavailable) || ctx.Err() != nil || time.Since(begun) >= prepareFor {
			return err
		}
		select {
		case <-time.After(relistAfter):
		case <-ctx.Done():
		}
	}
}

func (s *Store) prepare(ctx context.Context) error {
	if _, err := Epoch(ctx, s.client); err != nil {
		return err
	}
	found, err := orCreate(ctx, s.client, SchemaKey(), strconv.Itoa(SchemaVersion))
	if err != nil {
		return fmt.Errorf("reading the schema's version: %w", err)
	}
	if version, err := strconv.Atoi(found); err != nil || version != SchemaVersion {
		return errdefs.New(errdefs.FailedPrecondition, "UNKNOWN_SCHEMA",
			"the cluster's records are of version %q; this program knows version %d: start the debvisor-rpcd that wrote them, or a newer one", found, SchemaVersion)
	}
	return nil
}

// Epoch reads the cluster's epoch by a linearizable read; where there is none
// yet it becomes 0.
func Epoch(ctx context.Context, client *clientv3.Client) (uint64, error) {
	found, err := orCreate(ctx, client, EpochKey(), formatEpoch(0))
	if err != nil {
		return 0, fmt.Errorf("reading the epoch: %w", err)
	}
	epoch, err := strconv.ParseUint(found, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the epoch at %s: %w", EpochKey(), errors.Unwrap(err))
	}
	return epoch, nil
}

// orCreate reads a key, or writes a first value and gives that.
func orCreate(ctx context.Context, client *clientv3.Client, key, first string) (string, error) {
	bounded, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	resp, err := client.Txn(bounded).
		If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, first)).
		Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return "", refused(ctx, err)
	}
	if resp.Succeeded {
		return first, nil
	}
	return valueOf(resp.Responses[0]), nil
}
