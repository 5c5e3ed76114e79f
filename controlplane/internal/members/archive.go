package members

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
)

// partBytes is the most that one part of a backup holds.
const partBytes = 512 << 10

// Etcd is what a backup is taken of: clientv3.Client.
type Etcd interface {
	clientv3.KV
	Snapshot(ctx context.Context) (io.ReadCloser, error)
}

// Archive takes backups. Any replica can.
type Archive struct {
	Member *Member
	Etcd   Etcd
	View   *store.View
	Store  *store.Store
	Log    hclog.Logger
}

// Backup sends a backup in parts: the manifest, etcd's snapshot, and the manifest
// with the snapshot's digest. The CAs' keys in it open with the private half of
// recoveryKey (X25519, 32 bytes) alone. by is noted as who took it. Its errors
// are those of send, InvalidArgument for a key that is none, and Unavailable.
func (a *Archive) Backup(ctx context.Context, recoveryKey []byte, by string, send func(*debvisorv1.BackupPart) error) error {
	if len(recoveryKey) != 32 || bytes.Equal(recoveryKey, make([]byte, 32)) {
		return errdefs.Field("recovery_key", fmt.Sprintf("%d bytes", len(recoveryKey)), "an X25519 public key of 32 bytes, not all zero")
	}
	manifest, err := a.manifest(ctx, recoveryKey)
	if err != nil {
		return err
	}
	if err := send(&debvisorv1.BackupPart{Kind: &debvisorv1.BackupPart_Manifest{Manifest: manifest}}); err != nil {
		return err
	}
	manifest = proto.CloneOf(manifest)
	ca, err := a.caRevision(ctx)
	if err != nil {
		return err
	}
	if err := a.snapshot(ctx, manifest, send); err != nil {
		return err
	}
	if err := a.keysFit(ctx, ca, manifest); err != nil {
		return err
	}
	if err := send(&debvisorv1.BackupPart{Kind: &debvisorv1.BackupPart_End{End: manifest}}); err != nil {
		return err
	}
	a.Log.Info("a backup was taken", "principal", by, "revision", manifest.GetRevision(), "bytes", manifest.GetSnapshotBytes())
	note := &storev1.BackupNote{At: timestamppb.Now(), Revision: manifest.GetRevision(), Bytes: manifest.GetSnapshotBytes(), Principal: by}
	if _, err := a.Store.Commit(ctx, store.Change{Puts: []store.Put{store.PutProto(store.LastBackupKey(), note)}}); err != nil {
		// The caller has all of it; only the age of the last one is told wrong.
		a.Log.Warn("the backup is not noted as the last one", "error", err)
	}
	return nil
}

// manifest says what the backup will hold: all that this replica's etcd has once
// it has come as far as a majority.
func (a *Archive) manifest(ctx context.Context, recoveryKey []byte) (*debvisorv1.BackupManifest, error) {
	keys, err := a.Member.handOver(recoveryKey)
	if err != nil {
		return nil, errdefs.Field("recovery_key", "it", "an X25519 public key").WithCause(err)
	}
	latest, err := a.Etcd.Get(ctx, store.EpochKey(), clientv3.WithCountOnly())
	if err != nil {
		return nil, unavailable("ask etcd for its revision", err)
	}
	if err := a.View.Await(ctx, latest.Header.Revision); err != nil {
		return nil, unavailable("wait for the snapshot", err)
	}
	now := time.Now()
	return &debvisorv1.BackupManifest{
		Version: 1, Cluster: a.Member.Record().Cluster, Replica: a.Member.Record().Name, DebvisorVersion: obs.Version,
		Schema: store.SchemaVersion, Epoch: a.View.Current().Epoch, Revision: latest.Header.Revision,
		TakenAt: &debvisorv1.Timestamp{Seconds: now.Unix(), Nanos: int32(now.Nanosecond())},
		Ca:      keys.GetCa(), EtcdCa: keys.GetEtcdCa(), SealedKeys: keys.GetSealedKeys(),
	}, nil
}

// caRevision is when the CAs' record was last changed.
func (a *Archive) caRevision(ctx context.Context) (int64, error) {
	_, revision, err := a.Store.Read(ctx, store.CAKey())
	return revision, err
}

// keysFit refuses a backup whose records call for a CA whose key is not in it:
// the CAs are being exchanged, and this replica had not followed yet.
func (a *Archive) keysFit(ctx context.Context, before int64, m *debvisorv1.BackupManifest) error {
	value, revision, err := a.Store.Read(ctx, store.CAKey())
	if err != nil || revision == 0 {
		return err
	}
	record := &storev1.CARotation{}
	if err := proto.Unmarshal(value, record); err != nil {
		return errdefs.New(errdefs.Internal, "BROKEN_RECORD", "the CAs' record cannot be read").WithCause(err)
	}
	has, err := certs.ParseCertificates(m.GetCa())
	if err != nil {
		return fmt.Errorf("read the CAs: %w", err)
	}
	for _, data := range [][]byte{record.GetCurrent(), record.GetNext()} {
		wanted, err := certs.ParseCertificates(data)
		if len(data) == 0 {
			continue
		}
		if err != nil || revision != before || !slices.ContainsFunc(has, wanted[0].Equal) {
			return errdefs.New(errdefs.Aborted, "CA_CHANGING", "the CAs were exchanged while the backup was taken: take it again").WithCause(err).WithRetry(time.Second)
		}
	}
	return nil
}

// snapshot sends etcd's snapshot and notes its length and digest.
func (a *Archive) snapshot(ctx context.Context, manifest *debvisorv1.BackupManifest, send func(*debvisorv1.BackupPart) error) error {
	from, err := a.Etcd.Snapshot(ctx)
	if err != nil {
		return unavailable("ask etcd for a snapshot", err)
	}
	defer func() { _ = from.Close() }() // it was read to its end, or is of no use
	digest, part := sha256.New(), make([]byte, partBytes)
	for {
		n, err := io.ReadFull(from, part)
		if n > 0 {
			manifest.SnapshotBytes += uint64(n)
			_, _ = digest.Write(part[:n]) // never fails
			if err := send(&debvisorv1.BackupPart{Kind: &debvisorv1.BackupPart_Snapshot{Snapshot: part[:n]}}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			manifest.SnapshotSha256 = digest.Sum(nil)
			return nil
		case err != nil:
			return unavailable("read etcd's snapshot", err)
		}
	}
}
