package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	// Version is that of the form that this package writes and reads.
	Version = 1
	// mode is a backup's: whoever reads it has every record of the cluster.
	mode fs.FileMode = 0o600

	snapshotName = "etcd.db"
	manifestName = "manifest.json"
	block        = 512 // of a tar
	partial      = ".partial"
)

// Write writes a backup to a file that must not exist, from its parts in their
// order, which next gives until io.EOF; Reader gives it back. A failure leaves
// nothing under the name.
func Write(path string, next func() (*debvisorv1.BackupPart, error)) (_ *debvisorv1.BackupManifest, err error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s exists and is not overwritten", path)
	}
	f, err := os.OpenFile(path+partial, os.O_RDWR|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return nil, fmt.Errorf("make the backup's file: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = os.Remove(path + partial) // what is in it is no backup
		}
	}()
	if err := f.Chmod(mode); err != nil { // it may be left from another time
		return nil, fmt.Errorf("make the backup's file: %w", err)
	}
	manifest, err := fill(f, next)
	if err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, fmt.Errorf("bring the backup to the disk: %w", err)
	}
	if _, err := Verify(path + partial); err != nil {
		return nil, fmt.Errorf("the backup is not on the disk as it came: %w", err)
	}
	// Link, unlike Rename, replaces nothing.
	if err := errors.Join(os.Link(path+partial, path), os.Remove(path+partial), syncDirOf(path)); err != nil {
		return nil, fmt.Errorf("give the backup its name: %w", err)
	}
	return manifest, nil
}

// fill writes the tar. The snapshot's length is known only at its end, and its
// header is written then.
func fill(f *os.File, next func() (*debvisorv1.BackupPart, error)) (*debvisorv1.BackupManifest, error) {
	if _, err := f.Seek(block, io.SeekStart); err != nil {
		return nil, fmt.Errorf("write the backup: %w", err)
	}
	var begin, end *debvisorv1.BackupManifest
	digest, size := sha256.New(), int64(0)
	for {
		part, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		switch k := part.GetKind().(type) {
		case *debvisorv1.BackupPart_Manifest:
			begin = k.Manifest
		case *debvisorv1.BackupPart_Snapshot:
			n, err := f.Write(k.Snapshot)
			if err != nil {
				return nil, fmt.Errorf("write the backup: %w", err)
			}
			size += int64(n)
			_, _ = digest.Write(k.Snapshot) // never fails
		case *debvisorv1.BackupPart_End:
			end = k.End
		}
	}
	switch {
	case begin == nil || end == nil:
		return nil, errors.New("the backup broke off: it has no end")
	case size != int64(end.GetSnapshotBytes()) || !bytes.Equal(digest.Sum(nil), end.GetSnapshotSha256()):
		return nil, fmt.Errorf("the backup is not what was sent: %d bytes came of %d, or others", size, end.GetSnapshotBytes())
	}
	return end, finish(f, size, end)
}

// finish writes what follows the snapshot, and then the header before it.
func finish(f *os.File, size int64, manifest *debvisorv1.BackupManifest) error {
	text, err := protojson.MarshalOptions{Multiline: true}.Marshal(manifest)
	if err != nil {
		return fmt.Errorf("encode the backup's manifest: %w", err)
	}
	at := manifest.GetTakenAt()
	head, err := header(snapshotName, size, time.Unix(at.GetSeconds(), 0))
	if err != nil {
		return err
	}
	var rest bytes.Buffer
	rest.Write(make([]byte, (block-size%block)%block))
	second, err := header(manifestName, int64(len(text)), time.Unix(at.GetSeconds(), 0))
	if err != nil {
		return err
	}
	rest.Write(second)
	rest.Write(text)
	rest.Write(make([]byte, (block-len(text)%block)%block+2*block))
	if _, err := f.Write(rest.Bytes()); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	if _, err := f.WriteAt(head, 0); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	return nil
}

// header is one block, as a tar begins a file with.
func header(name string, size int64, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: size, Mode: int64(mode), ModTime: at, Format: tar.FormatUSTAR,
	}); err != nil {
		return nil, fmt.Errorf("write the backup: %w", err)
	}
	return b.Bytes(), nil
}

func syncDirOf(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
