package members

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/backup"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// RestoreOptions say what the first replica of a restored cluster is to be. Their
// Cluster is not used: the backup tells it.
type RestoreOptions struct {
	Options
	// From is the backup's file.
	From string
	// Key is the private half of the recovery key that the backup was taken for.
	Key *ecdh.PrivateKey
	// Epoch is the epoch to begin; 0: one later than every other one that began
	// before now, see NextEpoch.
	Epoch uint64
	Log   hclog.Logger
}

// Restored is what was restored.
type Restored struct {
	Record   Record
	Manifest *debvisorv1.BackupManifest
	Epoch    uint64
	// Changed says what of the backup was left out or marked, a line each.
	Changed []string
}

const (
	// revisionBump is what etcd's revision is raised by, so that none that a client
	// saw since the backup was taken comes again: more than were ever written in
	// between.
	revisionBump = 1_000_000_000
	// restoreWait is how long the restored etcd may take to answer.
	restoreWait = 2 * time.Minute
)

// NextEpoch is the epoch that a restore of a backup of that epoch begins: later
// than the backup's, and than that of any other restore, of this backup or
// another, since it counts seconds. Two clusters that were restored from one
// backup are then never of one epoch.
func NextEpoch(backup uint64, now time.Time) uint64 {
	return max(backup+1, uint64(max(now.Unix(), 0)))
}

// Restore makes the data directory of a new cluster's only replica from a backup.
// The cluster begins a new epoch, and until an operator confirms it no agent
// listens to it. It refuses a backup that is not whole or of a newer schema, a
// key that does not open it, and a directory that holds a replica. After a
// failure it can be repeated: replica.json comes last, and what an attempt that
// broke off has left is removed.
func Restore(ctx context.Context, home Home, o RestoreOptions) (Restored, error) {
	manifest, err := CheckBackup(o.From, o.Key)
	if err != nil {
		return Restored{}, err
	}
	epoch := o.Epoch
	if epoch == 0 {
		epoch = NextEpoch(manifest.GetEpoch(), time.Now())
	}
	if epoch <= manifest.GetEpoch() {
		return Restored{}, errdefs.Field("--epoch", fmt.Sprint(epoch), fmt.Sprintf("more than the backup's, which is %d", manifest.GetEpoch()))
	}
	o.Cluster = manifest.GetCluster()
	r, err := o.record()
	if err != nil {
		return Restored{}, err
	}
	r.State, r.InitialCluster = StateNew, r.Name+"="+r.PeerURL
	if err := home.clear(); err != nil {
		return Restored{}, err
	}
	has := &agentv1.JoinReplicaResponse{
		Cluster: manifest.GetCluster(), Ca: manifest.GetCa(), EtcdCa: manifest.GetEtcdCa(), SealedKeys: manifest.GetSealedKeys(),
	}
	if err := moveIn(home, r, has, o.Key); err != nil {
		return Restored{}, err
	}
	// gofail: var restoreBeforeEtcd struct{}
	if err := restoreEtcd(home, r, o.From, epoch); err != nil {
		return Restored{}, err
	}
	// gofail: var restoreBeforeRecords struct{}
	changed, err := restoreRecords(ctx, home, r, manifest, epoch, o.Log)
	if err != nil {
		return Restored{}, err
	}
	// gofail: var restoreBeforeItIsOne struct{}
	if err := r.write(home); err != nil {
		return Restored{}, err
	}
	if err := os.Remove(home.unfinished()); err != nil {
		return Restored{}, fmt.Errorf("end the restore: %w", err)
	}
	return Restored{Record: r, Manifest: manifest, Epoch: epoch, Changed: changed}, nil
}

// CheckBackup tells what a backup is of if this program can restore it with that
// key.
func CheckBackup(path string, key *ecdh.PrivateKey) (*debvisorv1.BackupManifest, error) {
	manifest, err := backup.Verify(path)
	if err != nil {
		return nil, err
	}
	if manifest.GetSchema() > store.SchemaVersion {
		return nil, errdefs.New(errdefs.FailedPrecondition, "UNKNOWN_SCHEMA",
			"the backup's records are of version %d, this program knows version %d: restore it with debvisor-rpcd %s or a newer one",
			manifest.GetSchema(), store.SchemaVersion, manifest.GetDebvisorVersion())
	}
	keys, err := openSealed(key, manifest.GetSealedKeys())
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "WRONG_RECOVERY_KEY",
			"%s was taken for another recovery key: its CAs' keys do not open with this one", path).WithCause(err)
	}
	for _, ca := range [][]byte{manifest.GetCa(), manifest.GetEtcdCa()} {
		if _, err := certs.NewAuthorityFrom(ca, keys); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return manifest, nil
}

// restoreEtcd makes etcd's directory from the backup: one member, a cluster of
// another id than the former one, so that its members do not speak to each other.
func restoreEtcd(home Home, r Record, from string, epoch uint64) (err error) {
	path := filepath.Join(home.Dir, "etcd", "restore.db")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, certs.SecretMode)
	if err != nil {
		return fmt.Errorf("unpack the backup: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	_, err = backup.Extract(from, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("unpack the backup: %w", err)
	}
	err = snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: path, Name: r.Name, OutputDataDir: filepath.Join(home.Dir, "etcd", "data"),
		PeerURLs: []string{r.PeerURL}, InitialCluster: r.InitialCluster, InitialClusterToken: fmt.Sprintf("debvisor-%d", epoch),
		RevisionBump: revisionBump, MarkCompacted: true,
	})
	if err != nil {
		return fmt.Errorf("restore etcd: %w", err)
	}
	return nil
}

// unfinished is the file that is there while a restore is under way.
func (h Home) unfinished() string { return filepath.Join(h.Dir, "restore.unfinished") }

// clear makes the directories for a restore. It removes what one that broke off
// has left, and refuses a directory in which there is anything else.
func (h Home) clear() error {
	if _, err := os.Stat(h.RecordFile()); err == nil {
		return h.vacant()
	}
	if _, err := os.Stat(h.unfinished()); err == nil {
		for _, dir := range []string{h.pki(""), filepath.Join(h.Dir, "etcd")} {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("remove what a restore that broke off has left: %w", err)
			}
		}
	} else {
		if err := h.vacant(); err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(h.Dir, "etcd")); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s exists: %s holds an etcd already, and nothing in it is overwritten", filepath.Join(h.Dir, "etcd"), h.Dir)
		}
		if err := os.MkdirAll(h.Dir, certs.DirMode); err != nil {
			return fmt.Errorf("make the data directory: %w", err)
		}
		if err := certs.WriteNewFile(h.unfinished(), []byte("debvisor-rpcd restore has not come to its end here; repeat it\n"), certs.SecretMode); err != nil {
			return err
		}
	}
	return h.create()
}
