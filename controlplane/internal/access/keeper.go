package access

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// keeperRetry is when what could not be replaced is tried again.
const keeperRetry = time.Second

// keeperName is what the audit log calls the Keeper.
const keeperName = "system:access"

// Keeper puts hashes in the place of the plain keys of the contract's manual
// set-up, as soon as it sees them, and flags those keys for rotation: etcd's
// log and backups have seen them. It is for the leader.
type Keeper struct {
	View interface {
		Current() *cluster.Snapshot
		Changed() <-chan struct{}
	}
	Store interface {
		Read(ctx context.Context, key string) (value []byte, modRevision int64, err error)
		Commit(ctx context.Context, c store.Change) (revision int64, err error)
	}
	// Fence ties it to the leader's term.
	Fence *store.Fence
	Audit interface{ Add(e *audit.Event) bool }
	Log   hclog.Logger
}

// Run replaces plain keys until ctx ends; it then returns nil. Its only error is
// that another leads. All else is logged and tried again.
func (k Keeper) Run(ctx context.Context) error {
	var seen int64 = -1
	for {
		changed := k.View.Changed()
		var again <-chan time.Time
		if s := k.View.Current(); s.Access != seen {
			seen = s.Access
			if err := k.replace(ctx, s); errors.Is(err, store.ErrFenced) {
				return err
			} else if err != nil && ctx.Err() == nil {
				k.Log.Warn("a plain key is still in etcd; replacing it is tried again", "error", err)
				seen, again = -1, time.After(keeperRetry)
			}
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return nil
		}
	}
}

// plainKey is one key's text that stands in etcd, by its hash, and all records
// that have to do with it.
type plainKey struct {
	hash string // hex
	// keys are records that are the text; exposed are those of its hash, which
	// a principal's record has given away.
	keys, exposed []string
	// principals are those whose records have the text.
	principals []string
}

// replace puts hashes in the place of every plain key, in one transaction a key.
// It goes on after an error and gives the first.
func (k Keeper) replace(ctx context.Context, s *cluster.Snapshot) error {
	var failed error
	for _, plain := range plainKeys(s) {
		err := k.replaceOne(ctx, s, plain)
		if errors.Is(err, store.ErrFenced) || ctx.Err() != nil {
			return err
		}
		if failed == nil {
			failed = err
		}
	}
	return failed
}

// plainKeys finds the texts that stand in etcd.
func plainKeys(s *cluster.Snapshot) []*plainKey {
	found := map[string]*plainKey{}
	of := func(hash string) *plainKey {
		if found[hash] == nil {
			found[hash] = &plainKey{hash: hash}
		}
		return found[hash]
	}
	hashes := map[string][]string{}
	for id, e := range s.APIKeys {
		hashes[e.Value.GetSha256()] = append(hashes[e.Value.GetSha256()], id)
		if e.Value.GetPlain() {
			plain := of(e.Value.GetSha256())
			plain.keys = append(plain.keys, id)
		}
	}
	for name, e := range s.Principals {
		if hash := plainHash(s, hashes, e.Value); hash != "" {
			plain := of(hash)
			plain.principals = append(plain.principals, name)
		}
	}
	list := slices.SortedFunc(maps.Values(found), func(a, b *plainKey) int { return strings.Compare(a.hash, b.hash) })
	for _, plain := range list {
		for _, id := range hashes[plain.hash] {
			if record := s.APIKeys[id].Value; !record.GetPlain() && !record.GetMustRotate() {
				plain.exposed = append(plain.exposed, id)
			}
		}
		for _, names := range [][]string{plain.keys, plain.exposed, plain.principals} {
			slices.Sort(names)
		}
	}
	return list
}

// plainHash gives the hash of the text that a principal's record has; "" where
// it has none. A text of 16 hex digits looks like a key's id, until there is no
// key of that id but one of that text.
func plainHash(s *cluster.Snapshot, hashes map[string][]string, p *storev1.Principal) string {
	ref := p.GetApikeyId()
	if hash, ok := strings.CutPrefix(ref, store.HashedKey); ok {
		if p.GetPlain() {
			return hash
		}
		return ""
	}
	hash := strings.TrimPrefix(store.HashKey(ref), store.HashedKey)
	if _, isID := s.APIKeys[ref]; ref == "" || isID || len(hashes[hash]) == 0 {
		return ""
	}
	return hash
}

func (k Keeper) replaceOne(ctx context.Context, s *cluster.Snapshot, plain *plainKey) error {
	change := store.Change{Fence: k.Fence}
	put := func(key string, modRevision int64, p store.Put) {
		change.Require = append(change.Require, store.Unchanged(key, modRevision))
		change.Puts = append(change.Puts, p)
	}
	for _, id := range plain.keys {
		key := store.APIKeyKey(id)
		put(key, s.APIKeys[id].ModRevision, store.PutJSON(key, &storev1.APIKey{
			Sha256: plain.hash, CreatedAt: timestamppb.Now(), Source: sourceEtcd, MustRotate: true,
		}))
	}
	rewrite := func(key string, modRevision int64, member string, value any) error {
		raw, at, err := k.Store.Read(ctx, key)
		switch {
		case err != nil:
			return err
		case at != modRevision:
			return &store.ConflictError{Key: key} // it may name another key by now
		}
		edited, err := editJSON(raw, member, value)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		put(key, modRevision, store.PutString(key, string(edited)))
		return nil
	}
	for _, id := range plain.exposed {
		if err := rewrite(store.APIKeyKey(id), s.APIKeys[id].ModRevision, "must_rotate", true); err != nil {
			return err
		}
	}
	for _, name := range plain.principals {
		if err := rewrite(store.PrincipalKey(name), s.Principals[name].ModRevision, "apikey_id", store.HashedKey+plain.hash); err != nil {
			return err
		}
	}
	if _, err := k.Store.Commit(ctx, change); err != nil {
		return err
	}
	k.tell(plain)
	return nil
}

// editJSON sets a member of a record in JSON and keeps all others, also those
// that this program does not know. It may have been written in camel case.
func editJSON(raw []byte, member string, value any) ([]byte, error) {
	record := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &record); err != nil {
		return nil, errors.New("the record is no JSON object") // the cause might show the key
	}
	content, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	delete(record, camelCase(member))
	record[member] = content
	return json.Marshal(record)
}

// camelCase is the other name that a member of a proto's JSON may have.
func camelCase(name string) string {
	words := strings.Split(name, "_")
	for i, w := range words[1:] {
		words[i+1] = strings.ToUpper(w[:1]) + w[1:]
	}
	return strings.Join(words, "")
}

func (k Keeper) tell(plain *plainKey) {
	k.Log.Warn("a plain key stood in etcd and is replaced by its hash; it still works, but etcd's log and backups have seen it: rotate it",
		"keys", slices.Concat(plain.keys, plain.exposed), "principals", plain.principals)
	k.Audit.Add(&audit.Event{
		Time: time.Now(), Kind: audit.Action, Principal: keeperName, Code: "OK",
		Args:   fmt.Sprintf("keys=%s principals=%s", strings.Join(slices.Concat(plain.keys, plain.exposed), ","), strings.Join(plain.principals, ",")),
		Reason: "a plain key stood in etcd and was replaced by its hash; it must be rotated",
	})
}
