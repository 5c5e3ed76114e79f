package members

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/pki"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// sealKeyLabel binds a replica's seal key at rest to its purpose.
const sealKeyLabel = "debvisor replica seal key"

// readSealKey gives the X25519 key to which this replica's share of the CAs'
// record is sealed, making it where there is none. It rests sealed, as the keys
// do which it opens.
func (h Home) readSealKey(wrap certs.WrapKey) (*ecdh.PrivateKey, error) {
	path := h.ownSealKey()
	data, err := os.ReadFile(path)
	if err == nil {
		raw, err := wrap.Open(data, sealKeyLabel)
		if err != nil {
			return nil, fmt.Errorf("seal key %s: %w: remove it, and another one is made", path, err)
		}
		return ecdh.X25519().NewPrivateKey(raw)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the seal key: %w", err)
	}
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a seal key: %w", err)
	}
	sealed, err := wrap.Seal(key.Bytes(), sealKeyLabel)
	if err != nil {
		return nil, err
	}
	return key, certs.WriteFile(path, sealed, certs.SecretMode)
}

// SealKey is the public half of the key that the CAs' keys are sealed to for this
// replica.
func (m *Member) SealKey() []byte { return m.seal.PublicKey().Bytes() }

// Changed is closed when the CAs have changed after this call.
func (m *Member) Changed() <-chan struct{} { return *m.changed.Load() }

// Trust tells which CAs this replica trusts and which one it signs with, by their
// SHA-256 fingerprints in hex.
func (m *Member) Trust() (trusted []string, signing string) {
	r := m.Ring()
	return r.Fingerprints(), certs.Fingerprint(r.Signing().Certificate())
}

// CatchUp takes over what became of the CAs while this replica was off, before
// it serves, and refuses to serve where its certificates were revoked. Its error
// is one line fit to end a start with.
func (m *Member) CatchUp(ctx context.Context, s *store.Store) error {
	if err := m.checkFormer(ctx, s); err != nil {
		return err
	}
	value, revision, err := s.Read(ctx, store.CAKey())
	if err != nil || revision == 0 {
		return err
	}
	record := &storev1.CARotation{}
	if err := proto.Unmarshal(value, record); err != nil {
		return fmt.Errorf("the CAs' record in etcd is damaged: %w", err)
	}
	return m.Take(record)
}

// Take makes this replica have the CAs that their record calls for: in its files
// first, so that a crash at any point leaves it with CAs that it had or is to
// have and a certificate of one of them, then in what it serves. Nothing is done
// where nothing is new.
func (m *Member) Take(record *storev1.CARotation) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.keep.ring
	next, err := pki.RingOf(record, was, m.keep.record.Name, m.seal, time.Now())
	if err != nil || next.Equal(was) {
		return err
	}
	// With both at first: the own certificate is still of the one.
	for _, ring := range []*certs.Ring{was.With(next), next} {
		if err := m.install(ring); err != nil {
			return err
		}
	}
	trusted, signing := m.Trust()
	m.log.Info("the cluster's CAs have changed", "trusted", trusted, "signing", signing, "generation", record.GetGeneration())
	return nil
}

// install puts CAs in place and issues the own certificate anew.
func (m *Member) install(ring *certs.Ring) error {
	if ring.Equal(m.keep.ring) {
		return nil
	}
	if err := ring.Save(m.keep.home.Ring(), m.wrap); err != nil {
		return err
	}
	next := m.keep
	next.ring = ring
	if err := next.issueServer(); err != nil {
		return err
	}
	if err := m.server.Reload(); err != nil {
		return err
	}
	// Last: what failed is done again when it is tried again.
	m.keep.ring = ring
	m.ring.Store(ring)
	changed := make(chan struct{})
	close(*m.changed.Swap(&changed))
	return nil
}
