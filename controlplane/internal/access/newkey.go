package access

import (
	"cmp"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

// The lives of keys.
const (
	// DefaultKeyLife is a key's where none is asked for.
	DefaultKeyLife = 90 * 24 * time.Hour
	// DefaultOverlap is how long a key that was rotated still works.
	DefaultOverlap = 24 * time.Hour
	// keyKept is how long the record of a key that has ended stays, to be read.
	keyKept = 30 * 24 * time.Hour
	// maxLiveKeys is how many a principal may have: one, and another one while
	// it is rotated.
	maxLiveKeys = 2
	// sweptAtOnce is how many ended keys' records go with one change.
	sweptAtOnce = 100
)

// NewKey is a key in the making.
type NewKey struct {
	key    identity.APIKey
	record *storev1.APIKey
	now    time.Time
}

// MakeKey makes a key, which is nobody's until Create's or Rotate's change is
// committed. A life of 0 is DefaultKeyLife. By is who asks.
func MakeKey(life time.Duration, by string, now time.Time) (*NewKey, error) {
	key, err := identity.NewAPIKey()
	if err != nil {
		return nil, err
	}
	return &NewKey{key: key, now: now, record: &storev1.APIKey{
		Sha256: key.Hash(), CreatedAt: timestamppb.New(now), CreatedBy: by,
		ExpiresAt: timestamppb.New(now.Add(cmp.Or(life, DefaultKeyLife))), Source: sourceMade,
	}}, nil
}

// String names the key without its secret.
func (n *NewKey) String() string { return n.key.String() }

// GoString names the key without its secret.
func (n *NewKey) GoString() string { return n.key.String() }

// ID names the key.
func (n *NewKey) ID() string { return n.key.ID }

// Answer is the key as the caller who asked for it sees it, once: with its text.
// It is for after Create's or Rotate's change.
func (n *NewKey) Answer() *debvisorv1.APIKey {
	m := keyMessage(heldKey{id: n.key.ID, principal: n.record.GetPrincipal(), source: sourceMade, record: n.record}, nil)
	m.Key = n.key.Text()
	return m
}

// Create gives the key to a principal. NotFound for one without a record,
// FailedPrecondition where it has two live keys already or is of the access
// file.
func (n *NewKey) Create(w World, principal, description string) (store.Change, error) {
	if err := n.fits(w, principal, ""); err != nil {
		return store.Change{}, err
	}
	return n.give(w, w.begin(), principal, description, ""), nil
}

// Rotate gives the key to the principal of another one, which ends after the
// overlap if it does not end before; without an overlap it ends at once, and its
// record goes. FailedPrecondition where two others would be live besides the
// new one, and for a key of the access file or that is nobody's.
func (n *NewKey) Rotate(w World, id string, overlap time.Duration) (store.Change, error) {
	old, err := w.findKey(id)
	if err != nil {
		return store.Change{}, err
	}
	if old.principal == "" {
		return store.Change{}, errdefs.New(errdefs.FailedPrecondition, "KEY_OF_NOBODY",
			"no principal's record names key %q, so that it opens nothing and cannot be rotated; revoke it", id).With("key", id)
	}
	ending := ""
	if overlap == 0 {
		ending = id
	}
	if err := n.fits(w, old.principal, ending); err != nil {
		return store.Change{}, err
	}
	c := w.begin()
	w.rename(c, old, n.key.ID)
	if overlap == 0 {
		w.dropKey(c, id)
		return n.give(w, c, old.principal, old.record.GetDescription(), id), nil
	}
	record := proto.CloneOf(old.record)
	// A record that was still a plain key is one of a hash from now on.
	record.Plain, record.Principal, record.Source = false, old.principal, old.source
	if end := n.now.Add(overlap); record.GetExpiresAt() == nil || end.Before(record.GetExpiresAt().AsTime()) {
		record.ExpiresAt = timestamppb.New(end)
	}
	put(c, store.APIKeyKey(id), w.APIKeys, id, record)
	return n.give(w, c, old.principal, old.record.GetDescription(), id), nil
}

// fits refuses one live key too many; the one that ends with the change does
// not count.
func (n *NewKey) fits(w World, principal, ending string) error {
	p, err := w.findPrincipal(principal)
	switch {
	case err != nil:
		return err
	case p.Source == authz.SourceFile:
		return w.inFile("principal", principal)
	case p.Source == authz.SourceFounder:
		return errdefs.New(errdefs.NotFound, "PRINCIPAL_NOT_FOUND",
			"principal %q has no record, and a key needs one: it is an operator by its certificate; make a record first, with the role %s",
			principal, operatorRole).With("principal", principal)
	}
	var others []string
	for _, k := range w.keys() {
		if k.principal == principal && k.id != ending && k.live(n.now) {
			others = append(others, k.id)
		}
	}
	if len(others) >= maxLiveKeys {
		return errdefs.New(errdefs.FailedPrecondition, "TOO_MANY_KEYS",
			"principal %q has %d live keys already (%s), and %d is the most: revoke one, or let it end", principal, len(others), some(others), maxLiveKeys).
			With("principal", principal).With("keys", some(others))
	}
	return nil
}

// give writes the new key, and clears away what ended long ago, but for the key
// that the new one takes the place of.
func (n *NewKey) give(w World, c *store.Change, principal, description, former string) store.Change {
	n.record.Principal, n.record.Description = principal, description
	put(c, store.APIKeyKey(n.key.ID), w.APIKeys, n.key.ID, n.record)
	swept := 0
	for _, k := range w.keys() {
		if k.principal == principal && k.id != former && k.source != authz.SourceFile && swept < sweptAtOnce && !k.live(n.now.Add(-keyKept)) {
			w.dropKey(c, k.id)
			swept++
		}
	}
	return *c
}
