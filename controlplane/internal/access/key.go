package access

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// heldKey is a key with whose it is and where it came from.
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
	var keys []heldKey
	for id, record := range w.file().Keys {
		keys = append(keys, heldKey{id: id, principal: record.GetPrincipal(), source: sourceFile, record: record})
	}
	named := w.namedKeys()
	for id, entry := range w.APIKeys {
		if _, ok := w.file().Keys[id]; !ok {
			keys = append(keys, named.held(id, entry.Value))
		}
	}
	slices.SortFunc(keys, func(a, b heldKey) int {
		return cmp.Or(cmp.Compare(a.principal, b.principal),
			a.record.GetCreatedAt().AsTime().Compare(b.record.GetCreatedAt().AsTime()), cmp.Compare(a.id, b.id))
	})
	return keys
}

// named says which principal's record names a key, by the key's id or hash.
type named map[string]string

// namedKeys reads the principals' records: in the contract's manual set-up a
// key's own says nothing of whose it is.
func (w World) namedKeys() named {
	names := named{}
	for _, name := range w.principalNames() {
		if ref := w.Principals[name].Value.GetApikeyId(); ref != "" {
			names[ref] = name
		}
	}
	return names
}

func (n named) held(id string, record *storev1.APIKey) heldKey {
	owner := cmp.Or(record.GetPrincipal(), n[id], n[store.HashedKey+record.GetSha256()])
	return heldKey{id: id, principal: owner, source: cmp.Or(record.GetSource(), sourceEtcd), record: record}
}

// findKey gives a key of etcd; NotFound where there is none of that id,
// FailedPrecondition for one of the access file.
func (w World) findKey(id string) (heldKey, error) {
	if _, ok := w.file().Keys[id]; ok {
		return heldKey{}, w.inFile("key", id)
	}
	entry, ok := w.APIKeys[id]
	if !ok {
		return heldKey{}, errdefs.New(errdefs.NotFound, "KEY_NOT_FOUND", "no API key %q", id).With("key", id)
	}
	return w.namedKeys().held(id, entry.Value), nil
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
func (w World) RevokeKey(id string) (Change, error) {
	k, err := w.findKey(id)
	if err != nil {
		return Change{}, err
	}
	e := w.begin()
	w.dropKey(e, id)
	w.rename(e, k, "")
	return e.done(), nil
}

// dropKey deletes a key's record and what is noted of its use.
func (w World) dropKey(e *edit, id string) {
	drop(e, store.APIKeyKey(id), w.APIKeys, e.draft.APIKeys, id)
	// Its uses are written at any time: no condition.
	e.change.Deletes = append(e.change.Deletes, store.KeyUseKey(id))
	e.draft.KeyUses.Delete(id)
}

// rename puts another reference in the place of the one by which the record of
// a key's principal names the key, if it does.
func (w World) rename(e *edit, k heldKey, ref string) {
	entry, ok := w.Principals[k.principal]
	named := entry.Value.GetApikeyId()
	if !ok || named != k.id && named != store.HashedKey+k.record.GetSha256() {
		return
	}
	record := proto.CloneOf(entry.Value)
	record.ApikeyId = ref
	put(e, store.PrincipalKey(k.principal), w.Principals, e.draft.Principals, k.principal, record)
}
