package authn

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/identity"
)

// keys finds the records of keys and who they belong to.
type keys struct {
	file *accessfile.File

	index atomic.Pointer[keyIndex]
	mu    sync.Mutex // one index is made at a time
}

// find tells who bears a key: by its id, where its text has one, else by its
// hash. Whatever the reason that there is no caller, the same work is done.
func (k *keys) find(s *cluster.Snapshot, id string, digest [sha256.Size]byte, now time.Time) (c *Caller, reason string) {
	policy := k.file.Current()
	record := keyRecord(s, policy, id)
	named := record != nil
	if !matches(record, digest) {
		byHash, known := k.indexed(s, policy).byHash[digest]
		switch {
		case known && byHash == "":
			reason = "several keys have this text"
		case named:
			reason = "key " + id + " has another secret"
		case id != "":
			reason = "there is no key " + id
		default:
			reason = "there is no such key"
		}
		id, record = byHash, keyRecord(s, policy, byHash)
	}
	holder, bad := k.judge(s, policy, id, record, digest, now)
	switch {
	case bad == "":
		return newKeyCaller(id, holder, record, digest), ""
	case record == nil:
		return nil, reason
	}
	return nil, bad
}

// knows tells whether there is a key of that hash, good or not.
func (k *keys) knows(s *cluster.Snapshot, digest [sha256.Size]byte) bool {
	_, ok := k.indexed(s, k.file.Current()).byHash[digest]
	return ok
}

// check tells why a caller's key no longer holds; "": it does.
func (k *keys) check(c *Caller, s *cluster.Snapshot, now time.Time) (reason string) {
	policy := k.file.Current()
	holder, reason := k.judge(s, policy, c.CredentialID, keyRecord(s, policy, c.CredentialID), c.proof, now)
	if reason == "" && holder != c.Name {
		return "key " + c.CredentialID + " is now the key of " + holder
	}
	return reason
}

// judge tells whose key a record is, and why it is not good; "": it is.
func (k *keys) judge(s *cluster.Snapshot, policy *accessfile.Policy, id string, record *storev1.APIKey, digest [sha256.Size]byte, now time.Time) (holder, reason string) {
	holder, several := k.holder(s, policy, id, record)
	_, inFile := policy.Principals[holder]
	_, inEtcd := s.Principals[holder]
	switch {
	case record == nil:
		return "", "key " + id + " has been revoked"
	case !matches(record, digest):
		return "", "key " + id + " has another secret"
	case record.GetExpiresAt() != nil && !now.Before(record.GetExpiresAt().AsTime()):
		return "", "key " + id + " has expired"
	case several:
		return "", "key " + id + " is named by several principals"
	case !inFile && !inEtcd:
		return "", "key " + id + " belongs to principal " + holder + ", of which there is no record"
	case identity.CheckPrincipal(holder) != nil:
		return "", "key " + id + " belongs to a name that no principal can have"
	}
	return holder, ""
}

// holder tells whose key it is: the principal that its record names; else the
// one that names the key, which only one may; else the one of the key's id.
func (k *keys) holder(s *cluster.Snapshot, policy *accessfile.Policy, id string, record *storev1.APIKey) (principal string, several bool) {
	if record.GetPrincipal() != "" {
		return record.GetPrincipal(), false
	}
	index := k.indexed(s, policy)
	for _, name := range [...]string{id, index.hashedIDs[id], hashedKey + record.GetSha256()} {
		if holder, ok := index.holders[name]; ok && name != "" {
			return holder, holder == ""
		}
	}
	return id, false
}

// keyRecord gives a key's record, the file's before etcd's; nil: there is none.
func keyRecord(s *cluster.Snapshot, policy *accessfile.Policy, id string) *storev1.APIKey {
	if record, ok := policy.Keys[id]; ok {
		return record
	}
	return s.APIKeys[id].Value
}

// matches compares a key's hash with that of its record in constant time. It
// takes no less where there is no record.
func matches(record *storev1.APIKey, digest [sha256.Size]byte) bool {
	stored, ok := hashOf(record)
	return subtle.ConstantTimeCompare(stored[:], digest[:]) == 1 && ok
}

// hashOf reads the hash of a record; ok is false where it has none.
func hashOf(record *storev1.APIKey) (hash [sha256.Size]byte, ok bool) {
	text := record.GetSha256()
	if ok = len(text) == 2*sha256.Size; !ok {
		text = noHash
	}
	var digits [2 * sha256.Size]byte
	copy(digits[:], text)
	_, err := hex.Decode(hash[:], digits[:])
	return hash, ok && err == nil
}

// noHash stands for the hash where there is none.
var noHash = strings.Repeat("0", 2*sha256.Size)

func newKeyCaller(id, holder string, record *storev1.APIKey, digest [sha256.Size]byte) *Caller {
	c := &Caller{
		Identity: identity.Identity{Principal: &identity.Principal{Name: holder}},
		Name:     holder, Kind: APIKey, CredentialID: id, proof: digest,
	}
	if end := record.GetExpiresAt(); end != nil {
		c.Expires = end.AsTime()
	}
	return c
}
