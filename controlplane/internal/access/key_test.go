package access_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/store"
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
	l := newLab(t)
	w := l.world("principal ci - viewer")
	k := made(t, 0)
	w = l.done(k.Create(w, "ci", "for the builds"))
	answer := k.Answer()
	text, err := identity.ParseAPIKey(answer.GetKey())
	if err != nil || text.ID != k.ID() {
		t.Fatalf("the key is %v, %v", text, err)
	}
	want := &storev1.APIKey{
		Sha256: text.Hash(), Principal: "ci", Description: "for the builds", CreatedAt: timestamppb.New(noon), CreatedBy: "boss",
		ExpiresAt: timestamppb.New(noon.Add(access.DefaultKeyLife)), Source: "hvctl",
	}
	if record := w.APIKeys[k.ID()].Value; !proto.Equal(record, want) {
		t.Errorf("the record is %v", record)
	}
	listed := w.ListKeys(&debvisorv1.KeyFilter{Principal: "ci"}).GetKeys()
	answer.Key = ""
	if len(listed) != 1 || !proto.Equal(listed[0], answer) {
		t.Errorf("listed is %v, answered was %v", listed, answer)
	}
	other := made(t, time.Hour)
	l.done(other.Create(w, "ci", ""))
	if other.ID() == k.ID() || other.Answer().GetExpiresAt().GetSeconds() != at(time.Hour).GetSeconds() {
		t.Errorf("the other is %v", other.Answer().GetExpiresAt())
	}
}

func TestAKeyNeedsAPrincipal(t *testing.T) {
	w := newLab(t).world("principal ci - viewer")
	for name, hint := range map[string]string{"none": `"none"`, "operator": "make a record first"} {
		_, err := made(t, 0).Create(w, name, "")
		refused(t, name, err, errdefs.NotFound, "PRINCIPAL_NOT_FOUND", hint)
	}
	_, err := made(t, 0).Create(w, "filed", "")
	refused(t, "filed", err, errdefs.FailedPrecondition, "IN_ACCESS_FILE", "access.yaml")
}

func TestTwoLiveKeysAtMost(t *testing.T) {
	l := newLab(t)
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
		{"plain ci-system open-sesame\nnames ci open-sesame\nkey b ci -", false},
		{"plain ci-system open-sesame\nnames ci another\nkey b ci -", true},
		{"plain ci open-sesame\nkey b ci -", false},
		{"plain ci-system open-sesame\nnames ci ci-system\nkey b ci -", false},
	} {
		w := l.world("principal ci - viewer\n" + c.keys)
		_, err := made(t, 0).Create(w, "ci", "")
		if c.ok && err != nil {
			t.Errorf("%s: %v", c.keys, err)
		} else if !c.ok {
			refused(t, c.keys, err, errdefs.FailedPrecondition, "TOO_MANY_KEYS", `"ci"`)
		}
	}
}

func TestRotateKey(t *testing.T) {
	l := newLab(t)
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
		k := made(t, 0)
		w := l.world("principal ci - viewer\n" + c.keys)
		w = l.done(k.Rotate(w, "old", c.overlap))
		ends := "gone"
		if entry, ok := w.APIKeys["old"]; ok {
			ends = entry.Value.GetExpiresAt().AsTime().Sub(noon).String()
		}
		if record := w.APIKeys[k.ID()].Value; ends != c.ends || record.GetPrincipal() != "ci" {
			t.Errorf("%s: the old one ends %s, want %s; the new one is %v", c.keys, ends, c.ends, record)
		}
	}
	w := l.world("principal ci - viewer\nkey old ci -\nkey b ci 5s\nplain lost something")
	_, err := made(t, 0).Rotate(w, "old", time.Hour)
	refused(t, "a third live key", err, errdefs.FailedPrecondition, "TOO_MANY_KEYS", "b")
	_, err = made(t, 0).Rotate(w, "none", time.Hour)
	refused(t, "an unknown key", err, errdefs.NotFound, "KEY_NOT_FOUND", `"none"`)
	_, err = made(t, 0).Rotate(w, "filed-key", time.Hour)
	refused(t, "a key of the file", err, errdefs.FailedPrecondition, "IN_ACCESS_FILE", "access.yaml")
	_, err = made(t, 0).Rotate(w, "lost", time.Hour)
	refused(t, "a key of nobody", err, errdefs.FailedPrecondition, "KEY_OF_NOBODY", `"lost"`)
}

// TestChangesOfAManualKey changes what the contract's manual set-up made, before
// the leader has taken it over: nothing plain may stay, and nothing be lost.
func TestChangesOfAManualKey(t *testing.T) {
	l := newLab(t)
	const manual = "tenant acme\nprincipal ci acme viewer\nnames ci open-sesame\nplain ci-system open-sesame"
	hash := strings.TrimPrefix(store.HashKey("open-sesame"), store.HashedKey)
	k := made(t, 0)
	w := l.world(manual)
	w = l.done(k.Rotate(w, "ci-system", time.Hour))
	old := w.APIKeys["ci-system"].Value
	if old.GetPlain() || !old.GetMustRotate() || old.GetSha256() != hash || old.GetPrincipal() != "ci" || old.GetSource() != "etcd" {
		t.Errorf("the old key's record is %v", old)
	}
	if p := w.Principals["ci"].Value; p.GetApikeyId() != k.ID() || p.GetTenant() != "acme" {
		t.Errorf("the principal's record is %v", p)
	}
	if got := ids(w, "ci"); got != k.ID()+" ci-system" && got != "ci-system "+k.ID() {
		t.Errorf("its keys are %s", got)
	}
	l.nothingPlain("open-sesame")

	w = l.world(manual)
	w = l.done(w.RevokeKey("ci-system"))
	if p := w.Principals["ci"].Value; p.GetApikeyId() != "" || p.GetTenant() != "acme" || len(w.APIKeys) != 0 {
		t.Errorf("after the revocation: %v, %v", p, w.APIKeys)
	}
	l.nothingPlain("open-sesame")

	w = l.world(manual)
	w = l.done(w.SetPrincipal(&debvisorv1.Principal{Name: "ci", Roles: []string{"developer"}}))
	if p := w.Principals["ci"].Value; p.GetApikeyId() != store.HashedKey+hash || p.GetPlain() || ids(w, "ci") != "ci-system" {
		t.Errorf("after another role: %v", p)
	}
	w = l.world(manual)
	if w = l.done(w.DeletePrincipal("ci")); len(w.Principals)+len(w.APIKeys) != 0 {
		t.Errorf("after its end: %v, %v", w.Principals, w.APIKeys)
	}
	l.nothingPlain("open-sesame")
}

// nothingPlain looks for a text in all that etcd holds.
func (l *lab) nothingPlain(text string) {
	l.t.Helper()
	all, err := l.client.Get(l.t.Context(), "", clientv3.WithFromKey())
	if err != nil {
		l.t.Fatal(err)
	}
	for _, kv := range all.Kvs {
		if strings.Contains(string(kv.Value), text) {
			l.t.Errorf("%s holds %s", kv.Key, kv.Value)
		}
	}
}

func TestRevokeKey(t *testing.T) {
	l := newLab(t)
	w := l.world("principal ci - viewer\nnames ci 0123456789abcdef\nkey a ci -\nused a 1m\nkey b ci -")
	_, err := w.RevokeKey("filed-key")
	refused(t, "a key of the file", err, errdefs.FailedPrecondition, "IN_ACCESS_FILE", "access.yaml")
	_, err = w.RevokeKey("none")
	refused(t, "an unknown key", err, errdefs.NotFound, "KEY_NOT_FOUND", `"none"`)
	w = l.done(w.RevokeKey("a"))
	if got := ids(w, ""); got != "b filed-key" || len(w.KeyUses) != 0 {
		t.Errorf("left are %s, %v", got, w.KeyUses)
	}
	if p := w.Principals["ci"].Value; p.GetApikeyId() != "0123456789abcdef" {
		t.Errorf("another key's name is lost: %v", p)
	}
}

func TestListKeys(t *testing.T) {
	l := newLab(t)
	w := l.world("principal ci - viewer\nprincipal ann - viewer\nkey a ci 1h\nused a 1m\nkey b ann -\nplain c text\nkey filed-key ci -")
	if got := ids(w, ""); got != "c b a filed-key" {
		t.Errorf("the keys are %s", got)
	}
	for i, want := range []*debvisorv1.APIKey{
		{Id: "c", Source: "etcd", MustRotate: true},
		{Id: "b", Principal: "ann", CreatedAt: at(-time.Hour), Source: "hvctl"},
		{Id: "a", Principal: "ci", CreatedAt: at(-time.Hour), ExpiresAt: at(time.Hour), LastUsedAt: at(-time.Minute), LastUsedFrom: "192.0.2.9", Source: "hvctl"},
		{Id: "filed-key", Principal: "filed", Source: "file"},
	} {
		if k := w.ListKeys(&debvisorv1.KeyFilter{}).GetKeys()[i]; !proto.Equal(k, want) {
			t.Errorf("the key is %v, want %v", k, want)
		}
	}
	if got := ids(w, "ci"); got != "a" {
		t.Errorf("those of ci are %s", got)
	}
}

// TestEndedKeysAreSwept keeps the records of ended keys for a month.
func TestEndedKeysAreSwept(t *testing.T) {
	l := newLab(t)
	w := l.world("principal ci - viewer\nkey a ci -719h\nkey b ci -721h\nkey c other -721h")
	k := made(t, 0)
	w = l.done(k.Create(w, "ci", ""))
	if got := ids(w, "ci"); got != "a "+k.ID() {
		t.Errorf("its keys are %s", got)
	}
	if _, ok := w.APIKeys["c"]; !ok {
		t.Error("another principal's was swept")
	}
}

// TestTheTextIsShownOnce looks for it in all that a new key shows but Answer.
func TestTheTextIsShownOnce(t *testing.T) {
	l := newLab(t)
	w := l.world("principal ci - viewer")
	k := made(t, 0)
	w = l.done(k.Create(w, "ci", ""))
	secret := strings.Split(k.Answer().GetKey(), "_")[2]
	l.nothingPlain(secret)
	for _, s := range []string{w.ListKeys(&debvisorv1.KeyFilter{}).String(), fmt.Sprintf("%v %+v %#v", k, k, k)} {
		if strings.Contains(s, secret) {
			t.Errorf("the secret is in %s", s)
		}
	}
}
