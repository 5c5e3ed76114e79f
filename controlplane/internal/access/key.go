package access

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// heldKey is a key with whose it is (empty: nobody's that has a record) and
// where it came from.
type heldKey struct {
	id, principal, source string
	record                *storev1.APIKey
}

// live tells whether the key can still be used.
func (k heldKey) live(now time.Time) bool {
	return k.record.GetExpiresAt() == nil || now.Before(k.record.GetExpiresAt().AsTime())
}

// keys gives every key, by principal, then by age.
func (w World) keys() []heldKey {
	holders := authn.Holders(w.Snapshot, w.File.Current())
	var keys []heldKey
	for _, r := range w.Policy.Keys(w.Snapshot) {
		k := heldKey{id: r.Name, principal: holders[r.Name], source: r.Source, record: r.Value}
		if _, ok := w.Policy.Principal(w.Snapshot, k.principal); !ok {
			k.principal = r.Value.GetPrincipal()
		}
		if r.Source != authz.SourceFile && r.Value.GetSource() != "" {
			k.source = r.Value.GetSource()
		}
		keys = append(keys, k)
	}
	slices.SortStableFunc(keys, func(a, b heldKey) int {
		return cmp.Or(cmp.Compare(a.principal, b.principal), a.record.GetCreatedAt().AsTime().Compare(b.record.GetCreatedAt().AsTime()))
	})
	return keys
}

// findKey gives a key of etcd; NotFound where there is none of that id,
// FailedPrecondition for one of the access file.
func (w World) findKey(id string) (heldKey, error) {
	keys := w.keys()
	i := slices.IndexFunc(keys, func(k heldKey) bool { return k.id == id })
	switch {
	case i < 0:
		return heldKey{}, errdefs.New(errdefs.NotFound, "KEY_NOT_FOUND", "no API key %q", id).With("key", id)
	case keys[i].source == authz.SourceFile:
		return heldKey{}, w.inFile("key", id)
	}
	return keys[i], nil
}

// ListKeys gives the keys that pass the filter, by principal, then by age,
// without their texts, which nobody has.
func (w World) ListKeys(filter *debvisorv1.KeyFilter) *debvisorv1.APIKeyList {
	list := &debvisorv1.APIKeyList{}
	for _, k := range w.keys() {
		if filter.GetPrincipal() == "" || k.principal == filter.GetPrincipal() {
			list.Keys = append(list.Keys, keyMessage(k, w.KeyUses[k.id].Value))
		}
	}
	return list
}

func keyMessage(k heldKey, use *storev1.KeyUse) *debvisorv1.APIKey {
	return &debvisorv1.APIKey{
		Id: k.id, Principal: k.principal, Description: k.record.GetDescription(),
		CreatedAt: timestamp(k.record.GetCreatedAt()), CreatedBy: k.record.GetCreatedBy(), ExpiresAt: timestamp(k.record.GetExpiresAt()),
		LastUsedAt: timestamp(use.GetAt()), LastUsedFrom: use.GetFrom(), Source: k.source, MustRotate: k.record.GetMustRotate(),
	}
}

// timestamp is a record's time in the contract's form; nil for none.
func timestamp(t *timestamppb.Timestamp) *debvisorv1.Timestamp {
	if t == nil {
		return nil
	}
	return &debvisorv1.Timestamp{Seconds: t.GetSeconds(), Nanos: t.GetNanos()}
}

// RevokeKey ends a key at once: its record goes, and where its principal's
// record names it, that does so no more.
func (w World) RevokeKey(id string) (store.Change, error) {
	k, err := w.findKey(id)
	if err != nil {
		return store.Change{}, err
	}
	c := w.begin()
	w.dropKey(c, id)
	w.rename(c, k, "")
	return *c, nil
}

// dropKey deletes a key's record and what is noted of its use.
func (w World) dropKey(c *store.Change, id string) {
	drop(c, store.APIKeyKey(id), w.APIKeys, id)
	// Its uses are written at any time: no condition.
	c.Deletes = append(c.Deletes, store.KeyUseKey(id))
}

// rename puts another reference in the place of the one by which the record of
// a key's principal names the key, if it does.
func (w World) rename(c *store.Change, k heldKey, ref string) {
	entry, ok := w.Principals[k.principal]
	names := []string{k.id, store.HashKey(k.id), store.HashedKey + k.record.GetSha256()}
	if !ok || !slices.Contains(names, entry.Value.GetApikeyId()) {
		return
	}
	record := proto.CloneOf(entry.Value)
	record.ApikeyId, record.Plain = ref, false
	put(c, store.PrincipalKey(k.principal), w.Principals, k.principal, record)
}
