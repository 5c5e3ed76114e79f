package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"google.golang.org/protobuf/encoding/protojson"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// maxManifest bounds a manifest: two CAs, two keys and some numbers.
const maxManifest = 1 << 20

// Verify reads a whole backup and tells what it is of. Its error says what is
// wrong with the file: it is none, it was cut short, or it was changed.
func Verify(path string) (*debvisorv1.BackupManifest, error) {
	return Extract(path, io.Discard)
}

// Extract copies the snapshot in a backup to w and tells what it is of. What w
// got counts only where there is no error.
func Extract(path string, w io.Writer) (*debvisorv1.BackupManifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	manifest, err := extract(f, w)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s is no backup that can be used: %w", path, err)
	}
	return manifest, nil
}

func extract(from io.Reader, w io.Writer) (*debvisorv1.BackupManifest, error) {
	files := tar.NewReader(from)
	if err := expect(files, snapshotName); err != nil {
		return nil, err
	}
	digest := sha256.New()
	size, err := io.Copy(io.MultiWriter(w, digest), files)
	if err != nil {
		return nil, broken(err)
	}
	if err := expect(files, manifestName); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(files, maxManifest))
	if err != nil {
		return nil, broken(err)
	}
	manifest := &debvisorv1.BackupManifest{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, manifest); err != nil {
		return nil, fmt.Errorf("its %s cannot be read: %w", manifestName, err)
	}
	switch {
	case manifest.GetVersion() != Version:
		return nil, fmt.Errorf("its form is of version %d; this program knows version %d", manifest.GetVersion(), Version)
	case size != int64(manifest.GetSnapshotBytes()) || !bytes.Equal(digest.Sum(nil), manifest.GetSnapshotSha256()):
		return nil, errors.New("etcd's snapshot in it is not the one that was taken: it was changed since")
	}
	if _, err := files.Next(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more in it than a backup has")
	}
	return manifest, nil
}

func expect(files *tar.Reader, name string) error {
	head, err := files.Next()
	if err != nil {
		return broken(err)
	}
	if head.Name != name || head.Typeflag != tar.TypeReg {
		return fmt.Errorf("it has %q where %s belongs", head.Name, name)
	}
	return nil
}

// broken says what tar's words mean here.
func broken(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it was cut short")
	}
	if errors.Is(err, tar.ErrHeader) {
		return errors.New("it is not in a backup's form")
	}
	return err
}
