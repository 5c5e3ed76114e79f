package authn

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// hashedKey begins an apikey_id that is the hash of what stood there, in hex,
// as package store decodes it.
const hashedKey = "sha256:"

// keyIndex finds keys that were set up by hand: those whose text has no id, and
// those whose record names no principal. It is for one state of the access
// records and of the access file.
type keyIndex struct {
	access int64
	// epoch tells states apart that a restored etcd counts alike.
	epoch  uint64
	policy *accessfile.Policy
	// byHash are keys' ids; "" where several keys have the hash.
	byHash map[[sha256.Size]byte]string
	// holders are principals by their apikey_id, in both forms; "" where several
	// have the same.
	holders map[string]string
	// hashedIDs are, for keys that no record gives to a principal, the form that
	// their id has in a principal's apikey_id after decoding.
	hashedIDs map[string]string
}

// indexed gives the index for a snapshot, made once for all snapshots that
// agree in who may do what.
func (k *keys) indexed(s *cluster.Snapshot, policy *accessfile.Policy) *keyIndex {
	if x := k.index.Load(); x.of(s, policy) {
		return x
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	x := k.index.Load()
	if !x.of(s, policy) {
		x = newKeyIndex(s, policy)
		k.index.Store(x)
	}
	return x
}

func (x *keyIndex) of(s *cluster.Snapshot, policy *accessfile.Policy) bool {
	return x != nil && x.access == s.Access && x.epoch == s.Epoch && x.policy == policy
}

func newKeyIndex(s *cluster.Snapshot, policy *accessfile.Policy) *keyIndex {
	x := &keyIndex{
		access: s.Access, epoch: s.Epoch, policy: policy,
		byHash:  make(map[[sha256.Size]byte]string, len(s.APIKeys)+len(policy.Keys)),
		holders: map[string]string{}, hashedIDs: map[string]string{},
	}
	for id, e := range s.APIKeys {
		if _, shadowed := policy.Keys[id]; !shadowed {
			x.addKey(id, e.Value)
		}
	}
	for id, record := range policy.Keys {
		x.addKey(id, record)
	}
	for name, e := range s.Principals {
		if _, shadowed := policy.Principals[name]; !shadowed {
			x.addHolder(name, e.Value)
		}
	}
	for name, p := range policy.Principals {
		x.addHolder(name, p)
	}
	return x
}

func (x *keyIndex) addKey(id string, record *storev1.APIKey) {
	if hash, ok := hashOf(record); ok {
		put(x.byHash, hash, id)
	}
	if record.GetPrincipal() == "" {
		x.hashedIDs[id] = hashed(id)
	}
}

// addHolder notes what a principal says of its key. An apikey_id that looks
// like an id may be a key's text all the same.
func (x *keyIndex) addHolder(name string, p *storev1.Principal) {
	id := p.GetApikeyId()
	if id == "" {
		return
	}
	put(x.holders, id, name)
	if !strings.HasPrefix(id, hashedKey) {
		put(x.holders, hashed(id), name)
	}
}

// put notes what has a key, or that several have.
func put[K comparable](of map[K]string, key K, id string) {
	if _, taken := of[key]; taken {
		id = ""
	}
	of[key] = id
}

func hashed(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hashedKey + hex.EncodeToString(sum[:])
}

// Holders tells, for a snapshot and what the access file says, whose the keys
// are, by the keys' ids; those are left out that nobody can use, since no
// principal or more than one has them.
func Holders(s *cluster.Snapshot, policy *accessfile.Policy) map[string]string {
	ids := maps.Clone(policy.Keys)
	for id, e := range s.APIKeys {
		if _, shadowed := ids[id]; !shadowed {
			ids[id] = e.Value
		}
	}
	k := &keys{}
	holders := make(map[string]string, len(ids))
	for id, record := range ids {
		if holder, several := k.holder(s, policy, id, record); !several {
			holders[id] = holder
		}
	}
	return holders
}
