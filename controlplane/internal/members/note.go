package members

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/pki"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// entitled refuses to start a replica whose certificates were revoked: it has the
// CA's key, and would only issue itself another one.
func (h Home) entitled() error {
	if _, err := os.Stat(h.revoked()); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("this replica's certificates were revoked (%s): remove the replica from the cluster and let it join anew with another data directory", h.revoked())
	}
	return nil
}

// keepFormer notes the serial of the certificate that the replica served with
// before: the next one is issued before anybody can be asked whether that one was
// revoked.
func (h Home) keepFormer() error {
	data, err := os.ReadFile(h.Server().Cert)
	if err != nil {
		return nil //nolint:nilerr // loading it tells what is wrong
	}
	list, err := certs.ParseCertificates(data)
	if err != nil {
		return nil //nolint:nilerr // likewise
	}
	former, err := h.readFormer()
	if serial := certs.Serial(list[0]); err == nil && !slices.Contains(former, serial) {
		err = certs.WriteFile(h.former(), []byte(strings.Join(append(former, serial), "\n")+"\n"), certs.PublicMode)
	}
	return err
}

func (h Home) readFormer() ([]string, error) {
	data, err := os.ReadFile(h.former())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read which certificates this replica had: %w", err)
	}
	return strings.Fields(string(data)), nil
}

// checkFormer refuses to go on where a certificate was revoked that the replica
// had before it was started, and forgets them otherwise.
func (m *Member) checkFormer(ctx context.Context, s *store.Store) error {
	former, err := m.keep.home.readFormer()
	if err != nil {
		return err
	}
	for _, serial := range former {
		_, revision, err := s.Read(ctx, store.RevokedKey(serial))
		if err != nil {
			return fmt.Errorf("ask whether this replica's certificate %s was revoked: %w", serial, err)
		}
		if revision != 0 {
			return m.revoked(serial)
		}
	}
	if err := os.Remove(m.keep.home.former()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// revoked notes on disk that the replica is not to start again; its error ends it.
func (m *Member) revoked(serial string) error {
	return errors.Join(certs.WriteFile(m.keep.home.revoked(), []byte(serial+"\n"), certs.PublicMode), m.keep.home.revokedNow())
}

// note remembers a principal's certificate that was issued without etcd, for the
// running replica to tell the cluster of.
func (h Home) note(certFile string) error {
	data, err := os.ReadFile(certFile)
	if err != nil {
		return fmt.Errorf("note the certificate: %w", err)
	}
	list, err := certs.ParseCertificates(data)
	if err != nil {
		return fmt.Errorf("note the certificate: %w", err)
	}
	if err := os.MkdirAll(h.issued(), certs.DirMode); err != nil {
		return fmt.Errorf("note the certificate: %w", err)
	}
	return certs.WriteFile(filepath.Join(h.issued(), certs.Serial(list[0])+".pem"), data, certs.PublicMode)
}

// noteEvery is how often a replica looks for certificates to tell of.
const noteEvery = 5 * time.Second

// Follow takes over each change of the CAs' record, and tells the cluster of the
// certificates that this replica has issued itself and that were issued in its
// data directory, until the context ends; it then returns nil. It returns an
// error when the replica's own certificate is revoked. Other failures are logged
// and tried again.
func (m *Member) Follow(ctx context.Context, view pki.View, commit pki.Committer) error {
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	var taken int64
	// What it has shown counts as well: it may renew while it is being revoked.
	shown := map[string]time.Time{}
	for {
		changed, s := view.Changed(), view.Current()
		leaf := m.server.Leaf()
		shown[certs.Serial(leaf)] = leaf.NotAfter
		for serial, end := range shown {
			if _, revoked := s.Revoked[serial]; revoked {
				return m.revoked(serial)
			}
			if time.Now().After(end) {
				delete(shown, serial)
			}
		}
		if s.CA.Value != nil && s.CA.ModRevision != taken {
			if err := m.Take(s.CA.Value); err != nil {
				m.log.Error("the change of the cluster's CAs is not taken over", "error", err)
			} else {
				taken = s.CA.ModRevision
			}
		}
		if err := m.noteOwn(ctx, s, commit); err != nil && ctx.Err() == nil {
			m.log.Warn("certificates are noted later", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			// The own certificate is looked at with each change, files now and then.
		case <-tick.C:
			if err := m.noteFiles(ctx, view.Current(), commit); err != nil && ctx.Err() == nil {
				m.log.Warn("certificates issued in the data directory are noted later", "error", err)
			}
		}
	}
}

// revokedNow ends a replica that runs.
func (h Home) revokedNow() error {
	return errors.New("this replica's certificate was revoked: it stops; remove it from the cluster and let it join anew with another data directory")
}

// noteOwn notes the certificate that this replica serves with.
func (m *Member) noteOwn(ctx context.Context, s *cluster.Snapshot, commit pki.Committer) error {
	leaf := m.server.Leaf()
	if _, noted := s.Certificates[certs.Serial(leaf)]; noted || s.Revision == 0 {
		return nil
	}
	return note(ctx, commit, pki.Note(leaf, m.server.Issuer(), pki.Holder{Kind: pki.Replica, Name: m.keep.record.Name}, ""))
}

// noteFiles notes what was issued in the data directory: by init, and by
// commands while the replica was off.
func (m *Member) noteFiles(ctx context.Context, s *cluster.Snapshot, commit pki.Committer) error {
	files, err := filepath.Glob(filepath.Join(m.keep.home.issued(), "*.pem"))
	if err != nil {
		return err
	}
	for _, path := range append(files, m.keep.home.Operator().Cert) {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		list, err := certs.ParseCertificates(data)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		leaf := list[0]
		_, noted := s.Certificates[certs.Serial(leaf)]
		if name := leaf.Subject.CommonName; !noted && !certs.Expired(leaf, time.Now()) && !strings.Contains(name, ":") {
			if err := note(ctx, commit, pki.Note(leaf, certs.IssuedBy(leaf, list[1:]), pki.Holder{Kind: pki.Principal, Name: name}, "replica:"+m.keep.record.Name)); err != nil {
				return err
			}
		}
		if path != m.keep.home.Operator().Cert {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// note writes a certificate's record, if it is not there.
func note(ctx context.Context, commit pki.Committer, r *storev1.Certificate) error {
	key := store.CertificateKey(r.GetSerial())
	_, err := commit.Commit(ctx, store.Change{Require: []store.Condition{store.Absent(key)}, Puts: []store.Put{store.PutProto(key, r)}})
	var conflict *store.ConflictError
	if errors.As(err, &conflict) || errdefs.Is(err, errdefs.Aborted) {
		return nil // it is noted
	}
	return err
}
