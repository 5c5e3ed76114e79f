package backup_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/backup"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// parts are those of a backup with that snapshot.
func parts(snapshot []byte) []*debvisorv1.BackupPart {
	begin := &debvisorv1.BackupManifest{Version: backup.Version, Cluster: "lab", Revision: 7, TakenAt: &debvisorv1.Timestamp{Seconds: 1_700_000_000}}
	end := proto.CloneOf(begin)
	sum := sha256.Sum256(snapshot)
	end.SnapshotBytes, end.SnapshotSha256 = uint64(len(snapshot)), sum[:]
	list := []*debvisorv1.BackupPart{{Kind: &debvisorv1.BackupPart_Manifest{Manifest: begin}}}
	for rest := snapshot; len(rest) > 0; {
		n := min(len(rest), 700)
		list = append(list, &debvisorv1.BackupPart{Kind: &debvisorv1.BackupPart_Snapshot{Snapshot: rest[:n]}})
		rest = rest[n:]
	}
	return append(list, &debvisorv1.BackupPart{Kind: &debvisorv1.BackupPart_End{End: end}})
}

// feed gives parts one by one, and then the error.
func feed(list []*debvisorv1.BackupPart, end error) func() (*debvisorv1.BackupPart, error) {
	return func() (*debvisorv1.BackupPart, error) {
		if len(list) == 0 {
			return nil, end
		}
		part := list[0]
		list = list[1:]
		return part, nil
	}
}

func TestABackupComesBackAsItWas(t *testing.T) {
	for _, size := range []int{0, 1, 511, 512, 513, 4096, 5000} {
		path := filepath.Join(t.TempDir(), "b")
		snapshot := bytes.Repeat([]byte("s"), size)
		wrote, err := backup.Write(path, feed(parts(snapshot), io.EOF))
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		var got bytes.Buffer
		read, err := backup.Extract(path, &got)
		if err != nil || !proto.Equal(read, wrote) || !bytes.Equal(got.Bytes(), snapshot) {
			t.Errorf("%d bytes: read %v with %d bytes, %v", size, read, got.Len(), err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		if _, err := backup.Write(path, feed(parts(snapshot), io.EOF)); err == nil || !strings.Contains(err.Error(), "not overwritten") {
			t.Errorf("a backup was overwritten: %v", err)
		}
	}
}

// What is not whole gets no name, and leaves nothing.
func TestWhatBreaksOffIsNoBackup(t *testing.T) {
	whole := parts(bytes.Repeat([]byte("s"), 3000))
	lost := errors.New("the connection was lost")
	other := proto.CloneOf(whole[2])
	other.GetSnapshot()[0] = 'x'
	for what, next := range map[string]func() (*debvisorv1.BackupPart, error){
		"no end":       feed(whole[:len(whole)-1], io.EOF),
		"an error":     feed(whole[:3], lost),
		"a lost part":  feed(append(append([]*debvisorv1.BackupPart{}, whole[:2]...), whole[3:]...), io.EOF),
		"other bytes":  feed(append([]*debvisorv1.BackupPart{whole[0], whole[1], other}, whole[3:]...), io.EOF),
		"nothing":      feed(nil, io.EOF),
		"no beginning": feed(whole[1:], io.EOF),
	} {
		dir := t.TempDir()
		if _, err := backup.Write(filepath.Join(dir, "b"), next); err == nil {
			t.Errorf("%s: it is taken for a backup", what)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", what, left, err)
		}
	}
}

// A file that was cut short, or changed at any place that counts, is refused.
func TestDamageIsSeen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b")
	if _, err := backup.Write(path, feed(parts(bytes.Repeat([]byte("s"), 1500)), io.EOF)); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 100, 512, 1000, 2047, 2048 + 512} {
		if err := os.WriteFile(path, whole[:at], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := backup.Verify(path); err == nil {
			t.Errorf("cut to %d bytes: it is taken for a backup", at)
		}
	}
	for _, at := range []int{3, 513, 2011, 2048 + 100} {
		changed := bytes.Clone(whole)
		changed[at] ^= 1
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := backup.Verify(path); err == nil {
			t.Errorf("changed at byte %d: it is taken for a backup", at)
		}
	}
	if _, err := backup.Verify(t.TempDir()); err == nil {
		t.Error("a directory is taken for a backup")
	}
}

func TestRecoveryKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k")
	first, made, err := backup.ReadOrMakeKey(path)
	if err != nil || !made {
		t.Fatal(made, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	again, made, err := backup.ReadOrMakeKey(path)
	if err != nil || made || !again.Equal(first) {
		t.Error(made, err)
	}
	for _, text := range []string{"", "dvrecovery_", "dvrecovery_zz", strings.Repeat("a", 64), "dvrecovery_" + strings.Repeat("a", 62)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := backup.ReadOrMakeKey(path); err == nil || !strings.Contains(err.Error(), "no recovery key") || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
