package store

import (
	"context"
	"errors"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
)

// View keeps a snapshot of the cluster up to date by watching etcd.
type View struct {
	client *clientv3.Client
	log    hclog.Logger
}

// NewView makes a View that is filled and kept by Run.
func NewView(client *clientv3.Client, log hclog.Logger) *View {
	return &View{client: client, log: log}
}

// Run keeps the snapshot until ctx ends.
func (v *View) Run(ctx context.Context) error { return errors.New("not yet") }

// Ready is closed when the first snapshot has been read.
func (v *View) Ready() <-chan struct{} { return nil }

// Current gives the latest snapshot; before Ready it is an empty one.
func (v *View) Current() *cluster.Snapshot { return cluster.Empty() }

// Fresh is nil while the snapshot is at most 5 s old.
func (v *View) Fresh() error { return nil }

// Changed gives a channel that is closed at the next change after this call.
// Ask for it before reading Current, or a change in between goes unseen.
func (v *View) Changed() <-chan struct{} { return nil }

// Await waits until the snapshot is at that revision or a later one.
func (v *View) Await(ctx context.Context, revision int64) error { return nil }
