package access_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/access"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

// made makes a key at noon.
func made(t *testing.T, life time.Duration) *access.NewKey {
	t.Helper()
	k, err := access.MakeKey(life, "boss", noon)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ids(w access.World, principal string) string {
	var words []string
	for _, k := range w.ListKeys(&debvisorv1.KeyFilter{Principal: principal}).GetKeys() {
		words = append(words, k.GetId())
	}
	return strings.Join(words, " ")
}

func at(d time.Duration) *debvisorv1.Timestamp {
	return &debvisorv1.Timestamp{Seconds: noon.Add(d).Unix()}
}

func TestCreateKey(t *testing.T) {
	w := world(t, "principal ci - viewer")
	k := made(t, 0)
	change, err := k.Create(w, "ci", "for the builds")
	if err != nil {
		t.Fatal(err)
	}
	answer := k.Answer()
	text, err := identity.ParseAPIKey(answer.GetKey())
	if err != nil || text.ID != k.ID() {
		t.Fatalf("the key is %v, %v", text, err)
	}
	record := change.After.APIKeys[k.ID()].Value
	want := &storev1.APIKey{
		Sha256: text.Hash(), Principal: "ci", Description: "for the builds", CreatedAt: timestamppb.New(noon), CreatedBy: "boss",
		ExpiresAt: timestamppb.New(noon.Add(access.DefaultKeyLife)), Source: "hvctl",
	}
	if !proto.Equal(record, want) {
		t.Errorf("the record is %v", record)
	}
	listed := after(w, change).ListKeys(&debvisorv1.KeyFilter{Principal: "ci"}).GetKeys()
	answer.Key = ""
	if len(listed) != 1 || !proto.Equal(listed[0], answer) {
		t.Errorf("listed is %v, answered was %v", listed, answer)
	}
	if other := made(t, time.Hour); other.ID() == k.ID() {
		t.Error("two keys have one id")
	} else if _, err := other.Create(w, "ci", ""); err != nil || other.Answer().GetExpiresAt().GetSeconds() != at(time.Hour).GetSeconds() {
		t.Errorf("%v ends then; %v", other.Answer().GetExpiresAt(), err)
	}
}

func TestAKeyNeedsAPrincipal(t *testing.T) {
	w := world(t, "principal ci - viewer")
	for name, hint := range map[string]string{"none": `"none"`, "operator": "make a record first"} {
		_, err := made(t, 0).Create(w, name, "")
		refused(t, name, err, errdefs.NotFound, "PRINCIPAL_NOT_FOUND", hint)
	}
	_, err := made(t, 0).Create(w, "filed", "")
	refused(t, "filed", err, errdefs.FailedPrecondition, "IN_ACCESS_FILE", "/etc/access.yaml")
}

func TestTwoLiveKeysAtMost(t *testing.T) {
	for _, c := range []struct {
		keys string
		ok   bool
	}{
		{"", true},
		{"key a ci -", true},
		{"key a ci 1h\nkey b ci -", false},
		{"key a ci 1ns\nkey b ci -", false},
		{"key a ci 0s\nkey b ci -", true}, // it ends in that very moment
		{"key a ci -1h\nkey b ci -", true},
		{"key a ci -\nkey b other -", true},
		// Those that only the principal's record names count too.
		{"key 0123456789abcdef - -\nnames ci 0123456789abcdef\nkey b ci -", false},
		{"key a - -\nnames ci sha256:" + strings.Repeat("ab", 32) + "\nkey b ci -", false},
	} {
		w := world(t, "principal ci - viewer\n"+c.keys)
		_, err := made(t, 0).Create(w, "ci", "")
		if c.ok && err != nil {
			t.Errorf("%s: %v", c.keys, err)
		} else if !c.ok {
			refused(t, c.keys, err, errdefs.FailedPrecondition, "TOO_MANY_KEYS", `"ci"`)
		}
	}
}

func TestRotateKey(t *testing.T) {
	for _, c := range []struct {
		keys    string
		overlap time.Duration
		// ends is when the old key ends; "gone": its record has gone.
		ends string
	}{
		{"key old ci 48h", 24 * time.Hour, "24h0m0s"},
		{"key old ci 1h", 24 * time.Hour, "1h0m0s"}, // never later than it would
		{"key old ci -", time.Second, "1s"},
		{"key old ci -1h", time.Hour, "-1h0m0s"},
		{"key old ci -", 0, "gone"},
		{"key old ci -\nkey b ci -", 0, "gone"}, // two stay two
		{"key old ci -2000h\nkey b ci -", time.Hour, "-2000h0m0s"},
	} {
		w := world(t, "principal ci - viewer\n"+c.keys)
		k := made(t, 0)
		change, err := k.Rotate(w, "old", c.overlap)
		if err != nil {
			t.Errorf("%s: %v", c.keys, err)
			continue
		}
		ends := "gone"
		if entry, ok := change.After.APIKeys["old"]; ok {
			ends = entry.Value.GetExpiresAt().AsTime().Sub(noon).String()
		}
		if ends != c.ends || change.After.APIKeys[k.ID()].Value.GetPrincipal() != "ci" {
			t.Errorf("%s: the old one ends %s, want %s; the new one is %v", c.keys, ends, c.ends, change.After.APIKeys[k.ID()].Value)
		}
	}
	w := world(t, "principal ci - viewer\nkey old ci -\nkey b ci 5s\nkey lost - -")
	_, err := made(t, 0).Rotate(w, "old", time.Hour)
	refused(t, "a third live key", err, errdefs.FailedPrecondition, "TOO_MANY_KEYS", "b")
	_, err = made(t, 0).Rotate(w, "none", time.Hour)
	refused(t, "an unknown key", err, errdefs.NotFound, "KEY_NOT_FOUND", `"none"`)
	_, err = made(t, 0).Rotate(w, "filed-key", time.Hour)
	refused(t, "a key of the file", err, errdefs.FailedPrecondition, "IN_ACCESS_FILE", "/etc/access.yaml")
	_, err = made(t, 0).Rotate(w, "lost", time.Hour)
	refused(t, "a key of nobody", err, errdefs.FailedPrecondition, "KEY_OF_NOBODY", `"lost"`)
}

// TestRotateAManualKey takes over what the contract's manual set-up made, before
// the leader has: nothing plain may stay, and nothing be lost.
func TestRotateAManualKey(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	w := world(t, "principal ci acme viewer\nnames ci sha256:"+hash+"\nkey ci-system - -")
	w.APIKeys["ci-system"].Value.Plain, w.APIKeys["ci-system"].Value.MustRotate, w.APIKeys["ci-system"].Value.Source = true, true, "etcd"
	k := made(t, 0)
	change, err := k.Rotate(w, "ci-system", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	old := change.After.APIKeys["ci-system"].Value
	if old.GetPlain() || !old.GetMustRotate() || old.GetSha256() != hash || old.GetPrincipal() != "ci" || old.GetSource() != "etcd" {
		t.Errorf("the old key's record is %v", old)
	}
	if p := change.After.Principals["ci"].Value; p.GetApikeyId() != k.ID() || p.GetTenant() != "acme" {
		t.Errorf("the principal's record is %v", p)
	}
	if got := ids(after(w, change), "ci"); got != "ci-system "+k.ID() {
		t.Errorf("its keys are %s", got)
	}
	change, err = w.RevokeKey("ci-system")
	if err != nil {
		t.Fatal(err)
	}
	if p := change.After.Principals["ci"].Value; p.GetApikeyId() != "" || len(change.After.APIKeys) != 0 {
		t.Errorf("after the revocation: %v, %v", p, change.After.APIKeys)
	}
}

func TestRevokeKey(t *testing.T) {
	w := world(t, "principal ci - viewer\nnames ci sha256:aa\nkey a ci -\nkey b ci -")
	change, err := w.RevokeKey("a")
	if err != nil {
		t.Fatal(err)
	}
	if got := ids(after(w, change), ""); got != "b filed-key" {
		t.Errorf("left are %s", got)
	}
	if p := change.After.Principals["ci"].Value; p.GetApikeyId() != "sha256:aa" {
		t.Errorf("another key's name is lost: %v", p)
	}
	_, err = w.RevokeKey("filed-key")
	refused(t, "a key of the file", err, errdefs.FailedPrecondition, "IN_ACCESS_FILE", "/etc/access.yaml")
	_, err = w.RevokeKey("none")
	refused(t, "an unknown key", err, errdefs.NotFound, "KEY_NOT_FOUND", `"none"`)
}

func TestListKeys(t *testing.T) {
	w := world(t, "principal ci - viewer\nprincipal ann - viewer\nkey a ci 1h\nkey b ann -\nkey c - -\nkey filed-key ci -")
	w.KeyUses["a"] = uses(noon.Add(-time.Minute))
	w.APIKeys["a"].Value.CreatedAt = timestamppb.New(noon)
	w.APIKeys["a"].Value.MustRotate = true
	if got := ids(w, ""); got != "c b a filed-key" {
		t.Errorf("the keys are %s", got)
	}
	k := w.ListKeys(&debvisorv1.KeyFilter{Principal: "ci"}).GetKeys()[0]
	want := &debvisorv1.APIKey{
		Id: "a", Principal: "ci", CreatedAt: at(0), ExpiresAt: at(time.Hour), LastUsedAt: at(-time.Minute), LastUsedFrom: "192.0.2.9",
		Source: "hvctl", MustRotate: true,
	}
	if !proto.Equal(k, want) {
		t.Errorf("the key is %v", k)
	}
}

// TestEndedKeysAreSwept keeps the records of ended keys for a month.
func TestEndedKeysAreSwept(t *testing.T) {
	w := world(t, "principal ci - viewer\nkey a ci -719h\nkey b ci -721h\nkey c other -721h")
	k := made(t, 0)
	change, err := k.Create(w, "ci", "")
	if err != nil {
		t.Fatal(err)
	}
	if got := ids(after(w, change), "ci"); got != "a "+k.ID() {
		t.Errorf("its keys are %s", got)
	}
	if _, ok := change.After.APIKeys["c"]; !ok {
		t.Error("another principal's was swept")
	}
}

// TestTheTextIsShownOnce looks for it in all that a new key shows but Answer.
func TestTheTextIsShownOnce(t *testing.T) {
	w := world(t, "principal ci - viewer")
	k := made(t, 0)
	change, err := k.Create(w, "ci", "")
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.Split(k.Answer().GetKey(), "_")[2]
	shown, err := json.Marshal(after(w, change).ListKeys(&debvisorv1.KeyFilter{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{string(shown), fmt.Sprintf("%+v %#v", k, k)} {
		if strings.Contains(s, secret) {
			t.Errorf("the secret is in %s", s)
		}
	}
}
