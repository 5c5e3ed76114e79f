package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// ReceiveSpec is where a stream goes.
type ReceiveSpec struct {
	// Dataset receives; a full stream makes it.
	Dataset string
	// Snapshot is the name that the received snapshot gets, behind the @, whatever the
	// stream says; empty: what the stream says.
	Snapshot string
	// Properties are set on it, whatever the stream says; Exclude are not taken from the
	// stream but inherited.
	Properties map[string]string
	Exclude    []string
	// Resumable keeps what has arrived when the stream breaks off.
	Resumable bool
	// Unmounted leaves a file system unmounted.
	Unmounted bool
}

func (s ReceiveSpec) args() ([]string, error) {
	n, err := parseDataset("dataset", s.Dataset)
	if err != nil {
		return nil, err
	}
	if n.Pool() == s.Dataset {
		return nil, errdefs.Field("dataset", s.Dataset, "a dataset of a pool, pool/name")
	}
	into := s.Dataset
	if s.Snapshot != "" {
		into += "@" + s.Snapshot
		if _, err := parseSnapshot("snapshot", into); err != nil {
			return nil, err
		}
	}
	args := []string{"receive"}
	if s.Resumable {
		args = append(args, "-s")
	}
	if s.Unmounted {
		args = append(args, "-u")
	}
	set, err := assignments("-o", s.Properties)
	if err != nil {
		return nil, err
	}
	args = append(args, set...)
	for _, p := range s.Exclude {
		if err := checkProperty(p); err != nil {
			return nil, err
		}
		args = append(args, "-x", p)
	}
	return append(args, "--", into), nil
}

// Receiver is a stream being received. Write is for one goroutine; Abort may come
// from any.
type Receiver struct {
	running *running
	to      *os.File
}

// Receive begins to receive a stream, without ever rolling the dataset back: an
// increment is taken where nothing was written since the snapshot that it begins at,
// be there later snapshots or not. What zfs refuses comes from Write or from Finish. The end of ctx ends it; what has
// arrived is kept where the spec says so.
func (z *ZFS) Receive(ctx context.Context, s ReceiveSpec) (*Receiver, error) {
	args, err := s.args()
	if err != nil {
		return nil, err
	}
	read, write, err := pipe()
	if err != nil {
		return nil, fmt.Errorf("a pipe for zfs receive: %w", err)
	}
	r, err := z.start(ctx, command{program: "zfs", args: args, about: s.Dataset, stdin: read, ours: write})
	_ = read.Close()
	if err != nil {
		_ = write.Close()
		return nil, err
	}
	return &Receiver{running: r, to: write}, nil
}

// Write hands bytes of the stream to zfs. When zfs has ended it gives zfs's error,
// or STREAM_BROKEN where zfs had all that it wanted.
func (r *Receiver) Write(p []byte) (int, error) {
	n, err := r.to.Write(p)
	if err == nil || errors.Is(err, os.ErrClosed) { // closed: Abort or Finish waits for zfs
		return n, err
	}
	if failed := r.Finish(); failed != nil {
		return n, failed
	}
	return n, errdefs.New(errdefs.Unavailable, CodeStreamBroken, "the stream goes on behind its end").With("dataset", r.running.about).WithCause(err)
}

// Finish ends the stream and waits for zfs; without an error, the snapshot is
// there. It may be called again.
func (r *Receiver) Finish() error {
	_ = r.to.Close()
	return r.running.wait()
}

// Abort gives the stream up and waits for zfs to end. What has arrived is kept
// where the receive is resumable.
func (r *Receiver) Abort() {
	_ = r.to.Close()
	select {
	case <-r.running.done: // zfs has met the end of the stream
	case <-r.running.ended:
		_ = r.running.wait()
	case <-time.After(patience):
		_ = r.running.end()
	}
}

// AbortReceive discards what a receive that was cut off has left of a dataset, and
// the dataset itself where that was all there was of it. It is idempotent: also a
// dataset that is gone has nothing left. One that is being received is
// DATASET_BUSY. It is the way out where a token is dead, for ever otherwise
// (zrepl #644).
func (z *ZFS) AbortReceive(ctx context.Context, dataset string) error {
	if _, err := parseDataset("dataset", dataset); err != nil {
		return err
	}
	err := z.do(ctx, command{program: "zfs", args: []string{"receive", "-A", "--", dataset}, about: dataset})
	var e *errdefs.Error
	if errors.As(err, &e) && (strings.Contains(e.Message, "does not have any resumable") || strings.Contains(e.Message, "dataset does not exist")) {
		return nil
	}
	return err
}
