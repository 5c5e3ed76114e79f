package zfs

import (
	"context"
	"io"

	"github.com/debvisor/debvisor/shared/errdefs"
)

var errSoon = errdefs.New(errdefs.Unimplemented, CodeUnsupported, "not written yet")

// Probe tells what the installed ZFS is and can do.
func (z *ZFS) Probe(context.Context) (Capabilities, error) { return Capabilities{}, errSoon }

// Pools lists the pools that are imported.
func (z *ZFS) Pools(context.Context) ([]Pool, error) { return nil, errSoon }

// Datasets lists the datasets at and below the roots; none given: all.
func (z *ZFS) Datasets(context.Context, ...string) ([]Dataset, error) { return nil, errSoon }

// Snapshots hands the snapshots of the roots to yield.
func (z *ZFS) Snapshots(context.Context, []string, bool, func(Snapshot) error) error { return errSoon }

// Bookmarks hands the bookmarks of the roots to yield.
func (z *ZFS) Bookmarks(context.Context, []string, bool, func(Bookmark) error) error { return errSoon }

// Holds gives the holds of each of the snapshots, by full name.
func (z *ZFS) Holds(context.Context, ...string) (map[string][]Hold, error) { return nil, errSoon }

// Snapshot takes an atomic set of snapshots.
func (z *ZFS) Snapshot(context.Context, SnapshotSpec) error { return errSoon }

// DestroySnapshot destroys a snapshot.
func (z *ZFS) DestroySnapshot(context.Context, Ref) (gone bool, err error) { return false, errSoon }

// DestroySnapshots destroys many snapshots of one pool; errs has one for each ref.
func (z *ZFS) DestroySnapshots(context.Context, []Ref) (errs []error, err error) { return nil, errSoon }

// EstimateDestroy tells how many bytes would come free.
func (z *ZFS) EstimateDestroy(context.Context, string, []string) (uint64, error) { return 0, errSoon }

// Hold holds snapshots.
func (z *ZFS) Hold(context.Context, string, ...string) error { return errSoon }

// Release lets snapshots go.
func (z *ZFS) Release(context.Context, string, ...string) error { return errSoon }

// Bookmark makes a bookmark of a snapshot.
func (z *ZFS) Bookmark(ctx context.Context, snapshot, bookmark string) error { return errSoon }

// DestroyBookmark destroys a bookmark.
func (z *ZFS) DestroyBookmark(ctx context.Context, bookmark string) error { return errSoon }

// EstimateSend tells how many bytes a stream will have.
func (z *ZFS) EstimateSend(context.Context, SendSpec) (uint64, error) { return 0, errSoon }

// DecodeToken tells what a resume token says.
func (z *ZFS) DecodeToken(context.Context, string) (Token, error) { return Token{}, errSoon }

// Send makes a stream; Close waits for zfs and gives its error.
func (z *ZFS) Send(context.Context, SendSpec) (io.ReadCloser, error) { return nil, errSoon }

// Receiver is a stream being received.
type Receiver struct{}

// Write hands bytes of the stream to zfs.
func (r *Receiver) Write([]byte) (int, error) { return 0, errSoon }

// Finish ends the stream and waits for zfs.
func (r *Receiver) Finish() error { return errSoon }

// Abort gives the stream up and waits for zfs to end.
func (r *Receiver) Abort() {}

// Receive begins to receive a stream.
func (z *ZFS) Receive(context.Context, ReceiveSpec) (*Receiver, error) { return nil, errSoon }

// AbortReceive discards what a receive that was cut off has left (idempotent).
func (z *ZFS) AbortReceive(ctx context.Context, dataset string) error { return errSoon }

// Create makes a file system or a volume.
func (z *ZFS) Create(context.Context, CreateSpec) error { return errSoon }

// Rename renames a dataset that has the guid.
func (z *ZFS) Rename(ctx context.Context, from, to string, guid uint64) error { return errSoon }

// DestroyDataset destroys a dataset that has the guid, with its snapshots.
func (z *ZFS) DestroyDataset(ctx context.Context, name string, guid uint64) (gone bool, err error) {
	return false, errSoon
}

// Rollback takes a dataset back to its latest snapshot.
func (z *ZFS) Rollback(context.Context, Ref) error { return errSoon }

// Get gives properties of a dataset, snapshot or bookmark.
func (z *ZFS) Get(ctx context.Context, name string, properties ...string) (map[string]Property, error) {
	return nil, errSoon
}

// Set sets properties of a dataset or snapshot.
func (z *ZFS) Set(ctx context.Context, name string, properties map[string]string) error {
	return errSoon
}

// Inherit takes properties of a dataset or snapshot away.
func (z *ZFS) Inherit(ctx context.Context, name string, properties ...string) error { return errSoon }

// Kind is what a name names.
type Kind int

// The kinds of name.
const (
	KindDataset Kind = iota
	KindSnapshot
	KindBookmark
)

// Name is a name of ZFS, taken apart.
type Name struct {
	Kind Kind
	// Dataset is the part before @ or #, Short the part behind it.
	Dataset, Short string
}

// ParseName takes a name apart.
func ParseName(string) (Name, error) { return Name{}, errSoon }
