package authn_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func TestKey(t *testing.T) {
	r := newRecords()
	end := now.Add(time.Hour)
	key := r.newKey(t, "ci", end)
	a := authenticator(authn.BearersConfig{})
	conn := connect()
	for i, header := range []string{"Bearer " + key.Text(), "bearer " + key.Text(), "BEARER   " + key.Text() + " "} {
		c, first, err := a.Authenticate(conn.call(header), r.s, now)
		if err != nil {
			t.Fatal(err)
		}
		if first != (i == 0) {
			t.Errorf("call %d is told as first %v", i, first)
		}
		if c.Name != "ci" || c.Kind != authn.APIKey || c.CredentialID != key.ID || !c.Expires.Equal(end) || c.Principal == nil || c.Agent != nil || c.Serial != "" {
			t.Errorf("taken for %+v", c)
		}
		if err := a.Check(c, r.s, now); err != nil {
			t.Error(err)
		}
		if shown := fmt.Sprintf("%+v", c); strings.Contains(shown, key.Text()) {
			t.Errorf("the key is shown: %s", shown)
		}
	}
	other := r.newKey(t, "ops", time.Time{})
	c, first, err := a.Authenticate(conn.call("Bearer "+other.Text()), r.s, now)
	if err != nil || !first || c.Name != "ops" || !c.Expires.IsZero() {
		t.Errorf("another key on the same connection: %+v, first %v, %v", c, first, err)
	}
}

// Whatever is wrong with a key, who shows it sees one and the same answer;
// only the log is told more.
func TestEveryRefusedKeyLooksTheSame(t *testing.T) {
	r := newRecords()
	good := r.newKey(t, "ci", time.Time{})
	expired := r.newKey(t, "ci", now)
	orphan := r.newKey(t, "gone", time.Time{})
	revoked := r.newKey(t, "ci", time.Time{})
	twice := r.newKey(t, "ci", time.Time{})
	broken := r.newKey(t, "ci", time.Time{})
	badName := r.newKey(t, "system:access", time.Time{})
	r.key("manual-old", &storev1.APIKey{Sha256: hash("expired by hand"), Principal: "ci", ExpiresAt: r.s.APIKeys[expired.ID].Value.GetExpiresAt()})
	r.key("a", &storev1.APIKey{Sha256: hash("one text"), Principal: "ci"})
	r.key("b", &storev1.APIKey{Sha256: hash("one text"), Principal: "ops"})
	r.key(twice.ID, &storev1.APIKey{Sha256: twice.Hash()})
	r.principal("first", &storev1.Principal{ApikeyId: twice.ID})
	r.principal("second", &storev1.Principal{ApikeyId: "sha256:" + twice.Hash()})
	r.principal("third", &storev1.Principal{ApikeyId: twice.ID})
	r.key(broken.ID, &storev1.APIKey{Sha256: broken.Hash()[:62], Principal: "ci"})
	r.change(func(d *cluster.Draft) { d.Principals.Delete("gone"); d.APIKeys.Delete(revoked.ID) })
	stranger := newRecords().newKey(t, "ci", time.Time{})
	// The right id with the secret of another key.
	body := "dvk_" + good.ID + "_" + strings.Split(stranger.Text(), "_")[2]
	swapped := fmt.Sprintf("%s_%08x", body, crc32.ChecksumIEEE([]byte(body)))

	a := authenticator(authn.BearersConfig{})
	seen := map[string]string{}
	for name, text := range map[string]string{
		"unknown": stranger.Text(), "unknown text": "hunter2", "unknown dotted text": "a.b", "wrong secret": swapped,
		"revoked": revoked.Text(), "expired": expired.Text(), "expired by hand": "expired by hand",
		"of a deleted principal": orphan.Text(), "of several principals": twice.Text(), "several keys": "one text",
		"broken record": broken.Text(), "of no principal's name": badName.Text(), "the hash itself": good.Hash(), "the id": good.ID,
	} {
		c, _, err := a.Authenticate(connect().call("Bearer "+text), r.s, now)
		if c != nil {
			t.Fatalf("%s: taken for %+v", name, c)
		}
		seen[wantRefused(t, err, "KEY_NOT_ACCEPTED")] = name
		reason := authn.Reason(err)
		if !strings.HasPrefix(reason, "the API key is not accepted: ") || strings.Contains(reason, text) && text != good.ID {
			t.Errorf("%s: the log is told %q", name, reason)
		}
	}
	if len(seen) != 1 {
		t.Errorf("refusals differ: %v", seen)
	}
}

func TestMalformedKeysAreNotLookedUp(t *testing.T) {
	r := newRecords()
	text := r.newKey(t, "ci", time.Time{}).Text()
	// A record whose hash fits shows that it is not even looked for.
	typo := text[:30] + "g" + text[31:]
	r.key("typo", &storev1.APIKey{Sha256: hash(typo), Principal: "ci"})
	a := authenticator(authn.BearersConfig{})
	for _, bad := range []string{typo, text[:len(text)-1], text + "0", "dvk_", "dvk_" + strings.Repeat("0", 90)} {
		_, _, err := a.Authenticate(connect().call("Bearer "+bad), r.s, now)
		if message := wantRefused(t, err, "KEY_MALFORMED"); strings.Contains(message, bad) {
			t.Errorf("the answer repeats the key: %s", message)
		}
	}
}

func TestAuthorizationHeader(t *testing.T) {
	r := newRecords()
	key := r.newKey(t, "ci", time.Time{}).Text()
	a := authenticator(authn.BearersConfig{})
	for name, c := range map[string]struct {
		headers []string
		code    string
	}{
		"none":           {nil, "NO_IDENTITY"},
		"two":            {[]string{"Bearer " + key, "Bearer " + key}, "BAD_AUTHORIZATION"},
		"empty":          {[]string{""}, "BAD_AUTHORIZATION"},
		"scheme only":    {[]string{"Bearer"}, "BAD_AUTHORIZATION"},
		"empty bearer":   {[]string{"Bearer  "}, "BAD_AUTHORIZATION"},
		"no scheme":      {[]string{key}, "BAD_AUTHORIZATION"},
		"basic":          {[]string{"Basic " + key}, "BAD_AUTHORIZATION"},
		"tab":            {[]string{"Bearer\t" + key}, "BAD_AUTHORIZATION"},
		"space before":   {[]string{" Bearer " + key}, "BAD_AUTHORIZATION"},
		"two in one":     {[]string{"Bearer " + key + ", Bearer " + key}, "KEY_MALFORMED"},
		"over the limit": {[]string{"Bearer " + strings.Repeat("x", 8<<10+1)}, "BAD_AUTHORIZATION"},
		"at the limit":   {[]string{"Bearer " + strings.Repeat("x", 8<<10)}, "KEY_NOT_ACCEPTED"},
		"many dots":      {[]string{"Bearer " + strings.Repeat(".", 8000)}, "KEY_NOT_ACCEPTED"},
		"a token":        {[]string{"Bearer a.b.c"}, "NO_TOKENS"},
	} {
		_, _, err := a.Authenticate(connect().call(c.headers...), r.s, now)
		if message := wantRefused(t, err, c.code); strings.Contains(message, key) {
			t.Errorf("%s: the answer repeats the key: %s", name, message)
		}
	}
	// On a listener that takes no bearers even a good key opens nothing.
	_, _, err := authn.New(authn.Config{Cluster: "testing"}).Authenticate(connect().call("Bearer "+key), r.s, now)
	if message := wantRefused(t, err, "NO_IDENTITY"); strings.Contains(message, "Bearer") {
		t.Errorf("a listener without bearers asks for one: %s", message)
	}
}

// Whose a key is that was set up by hand.
func TestKeysMadeByHand(t *testing.T) {
	const text = "plain text of a key"
	type set struct {
		keys       map[string]*storev1.APIKey
		principals map[string]*storev1.Principal
	}
	plain := &storev1.APIKey{Sha256: hash(text), Plain: true}
	hashedText := "sha256:" + hash(text)
	for name, c := range map[string]struct {
		set
		want string // empty: refused
	}{
		"the contract's example": {set{map[string]*storev1.APIKey{"ci-system": plain}, map[string]*storev1.Principal{"ci-system": {ApikeyId: hashedText, Plain: true}}}, "ci-system"},
		"other names":            {set{map[string]*storev1.APIKey{"k": plain}, map[string]*storev1.Principal{"ci": {ApikeyId: hashedText}}}, "ci"},
		"named by id":            {set{map[string]*storev1.APIKey{"k": plain}, map[string]*storev1.Principal{"ci": {ApikeyId: "sha256:" + hash("k")}}}, "ci"},
		"named by our id":        {set{map[string]*storev1.APIKey{"0123456789abcdef": plain}, map[string]*storev1.Principal{"ci": {ApikeyId: "0123456789abcdef"}}}, "ci"},
		"by its own id":          {set{map[string]*storev1.APIKey{"ci": plain}, map[string]*storev1.Principal{"ci": {}}}, "ci"},
		"own id, named by another": {set{
			map[string]*storev1.APIKey{"ci": plain},
			map[string]*storev1.Principal{"ci": {}, "ops": {ApikeyId: hashedText}},
		}, "ops"},
		"the record says": {set{
			map[string]*storev1.APIKey{"k": {Sha256: hash(text), Principal: "ci"}},
			map[string]*storev1.Principal{"ci": {}, "ops": {ApikeyId: hashedText}},
		}, "ci"},
		"no principal yet":   {set{map[string]*storev1.APIKey{"ci": plain}, nil}, ""},
		"no key yet":         {set{nil, map[string]*storev1.Principal{"ci": {ApikeyId: hashedText}}}, ""},
		"two principals":     {set{map[string]*storev1.APIKey{"k": plain}, map[string]*storev1.Principal{"a": {ApikeyId: hashedText}, "b": {ApikeyId: hashedText}}}, ""},
		"three principals":   {set{map[string]*storev1.APIKey{"k": plain}, map[string]*storev1.Principal{"a": {ApikeyId: hashedText}, "b": {ApikeyId: hashedText}, "c": {ApikeyId: hashedText}}}, ""},
		"an unusable name":   {set{map[string]*storev1.APIKey{"agent:n1": plain}, map[string]*storev1.Principal{"agent:n1": {}}}, ""},
		"an empty reference": {set{map[string]*storev1.APIKey{"k": plain}, map[string]*storev1.Principal{"ci": {ApikeyId: ""}}}, ""},
	} {
		r := newRecords()
		r.change(func(d *cluster.Draft) {
			for id, k := range c.keys {
				d.APIKeys.Put(id, k, 1)
			}
			for n, p := range c.principals {
				d.Principals.Put(n, p, 1)
			}
		})
		a := authenticator(authn.BearersConfig{})
		caller, _, err := a.Authenticate(connect().call("Bearer "+text), r.s, now)
		holders := authn.Holders(r.s, accessfile.None().Current())
		switch {
		case c.want == "":
			wantRefused(t, err, "KEY_NOT_ACCEPTED")
		case err != nil:
			t.Errorf("%s: %s", name, authn.Reason(err))
		case caller.Name != c.want:
			t.Errorf("%s: taken for %s, want %s", name, caller.Name, c.want)
		case holders[caller.CredentialID] != c.want:
			t.Errorf("%s: the key's holder is told as %v", name, holders)
		}
	}
}

// A restored etcd counts its revisions anew: what was known of keys at one of
// the same number is not what is in it.
func TestKeysOfARestoredStore(t *testing.T) {
	const text = "plain text of a key"
	a := authenticator(authn.BearersConfig{})
	for epoch, holder := range []string{"ada", "bob"} {
		r := newRecords()
		r.change(func(d *cluster.Draft) {
			d.SetEpoch(uint64(epoch))
			d.APIKeys.Put("k", &storev1.APIKey{Sha256: hash(text)}, 1)
			d.Principals.Put(holder, &storev1.Principal{ApikeyId: "sha256:" + hash(text)}, 1)
		})
		caller, _, err := a.Authenticate(connect().call("Bearer "+text), r.s, now)
		if err != nil {
			t.Fatalf("in epoch %d: %s", epoch, authn.Reason(err))
		}
		if caller.Name != holder {
			t.Errorf("in epoch %d: taken for %s, want %s", epoch, caller.Name, holder)
		}
	}
}

// A key ends for calls that go on as soon as the snapshot says so.
func TestCheckKey(t *testing.T) {
	r := newRecords()
	key := r.newKey(t, "ci", now.Add(time.Hour))
	a := authenticator(authn.BearersConfig{})
	conn := connect()
	c, _, err := a.Authenticate(conn.call("Bearer "+key.Text()), r.s, now)
	if err != nil {
		t.Fatal(err)
	}
	good := r.s
	record := r.s.APIKeys[key.ID].Value
	for name, change := range map[string]func(d *cluster.Draft){
		"revoked":           func(d *cluster.Draft) { d.APIKeys.Delete(key.ID) },
		"principal deleted": func(d *cluster.Draft) { d.Principals.Delete("ci") },
		"given to another": func(d *cluster.Draft) {
			d.Principals.Put("ops", &storev1.Principal{}, 9)
			d.APIKeys.Put(key.ID, &storev1.APIKey{Sha256: record.GetSha256(), Principal: "ops"}, 9)
		},
		"another secret now": func(d *cluster.Draft) { d.APIKeys.Put(key.ID, &storev1.APIKey{Sha256: hash("x"), Principal: "ci"}, 9) },
	} {
		r.s = good
		s := r.change(change)
		if wantRefused(t, a.Check(c, s, now), "KEY_NOT_ACCEPTED") == "" {
			t.Errorf("%s: no message", name)
		}
		if name == "given to another" {
			continue // it is good, but somebody else's
		}
		if _, _, err := authenticator(authn.BearersConfig{}).Authenticate(connect().call("Bearer "+key.Text()), s, now); err == nil {
			t.Errorf("%s: still accepted", name)
		}
	}
	if err := a.Check(c, good, now.Add(time.Hour-time.Nanosecond)); err != nil {
		t.Error(err)
	}
	wantRefused(t, a.Check(c, good, now.Add(time.Hour)), "KEY_NOT_ACCEPTED")
}

func TestKeysOfTheAccessFile(t *testing.T) {
	r := newRecords()
	inBoth, inFile := r.newKey(t, "ci", time.Time{}), newRecords().newKey(t, "ci", time.Time{})
	path := filepath.Join(t.TempDir(), "access.yaml")
	put := func(content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(fmt.Sprintf("principals:\n  filed:\n    roles: [viewer]\nkeys:\n  %s:\n    sha256: %s\n    principal: filed\n", inFile.ID, inFile.Hash()))
	file, err := accessfile.Open(accessfile.Config{Path: path, Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	a := authenticator(authn.BearersConfig{File: file})
	c, _, err := a.Authenticate(connect().call("Bearer "+inFile.Text()), r.s, now)
	if err != nil || c.Name != "filed" {
		t.Fatalf("%+v, %v", c, err)
	}
	if c, _, err := a.Authenticate(connect().call("Bearer "+inBoth.Text()), r.s, now); err != nil || c.Name != "ci" {
		t.Fatalf("a key of etcd beside the file: %+v, %v", c, err)
	}
	// The file's key of the same id counts, and what it no longer has is gone.
	put(fmt.Sprintf("principals:\n  filed:\n    roles: [viewer]\nkeys:\n  %s:\n    sha256: %s\n    principal: filed\n", inBoth.ID, inBoth.Hash()))
	if err := file.Reload(); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, a.Check(c, r.s, now), "KEY_NOT_ACCEPTED")
	if c, _, err := a.Authenticate(connect().call("Bearer "+inBoth.Text()), r.s, now); err != nil || c.Name != "filed" {
		t.Errorf("the file's key: %+v, %v", c, err)
	}
	if got, want := authn.Holders(r.s, file.Current()), map[string]string{inBoth.ID: "filed"}; !maps.Equal(got, want) {
		t.Errorf("holders are told as %v, want %v", got, want)
	}
}

// uses counts what it is told.
type uses struct {
	mu   sync.Mutex
	seen []string
}

func (u *uses) Note(id, address string, at time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.seen = append(u.seen, fmt.Sprint(id, " ", address, " ", at.Equal(now)))
}

func TestUsesAreNoted(t *testing.T) {
	r := newRecords()
	key := r.newKey(t, "ci", time.Time{})
	u := &uses{}
	a := authenticator(authn.BearersConfig{Uses: u})
	conn := connect()
	for range 2 {
		if _, _, err := a.Authenticate(conn.call("Bearer "+key.Text()), r.s, now); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := a.Authenticate(conn.call("Bearer wrong"), r.s, now); err == nil {
		t.Fatal("a wrong key is accepted")
	}
	if len(u.seen) != 2 || !strings.HasPrefix(u.seen[0], key.ID+" ") || !strings.HasSuffix(u.seen[0], " true") {
		t.Errorf("noted %q", u.seen)
	}
}

// Calls on many connections while keys come and go.
func TestKeysConcurrently(t *testing.T) {
	r := newRecords()
	key := r.newKey(t, "ci", time.Time{})
	r.key("ci-manual", &storev1.APIKey{Sha256: hash("by hand"), Principal: "ci"})
	with := r.s
	without := r.change(func(d *cluster.Draft) { d.APIKeys.Delete(key.ID) })
	a := authenticator(authn.BearersConfig{})
	shared := connect()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 300 {
				s := with
				if n%2 == i%2 {
					s = without
				}
				for _, conn := range []connection{shared, connect()} {
					c, _, err := a.Authenticate(conn.call("Bearer "+key.Text()), s, now)
					if err == nil {
						err = a.Check(c, s, now)
					}
					if (err == nil) != (s == with) {
						t.Errorf("the key is there: %v, and %v", s == with, err)
					}
					if c, _, err := a.Authenticate(conn.call("Bearer by hand"), s, now); err != nil || c.Name != "ci" {
						t.Errorf("%+v, %v", c, err)
					}
				}
			}
		})
	}
	wg.Wait()
}
