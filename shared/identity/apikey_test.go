package identity_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

func newKey(t testing.TB) identity.APIKey {
	t.Helper()
	key, err := identity.NewAPIKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestAPIKey(t *testing.T) {
	key := newKey(t)
	read, err := identity.ParseAPIKey(key.Text())
	if err != nil || read != key {
		t.Fatalf("read %v, %v, made %v", read, err, key)
	}
	if other := newKey(t); other == key || other.Hash() == key.Hash() {
		t.Error("two keys are the same")
	}
	sum := sha256.Sum256([]byte(key.Text()))
	if key.Hash() != hex.EncodeToString(sum[:]) {
		t.Error("the hash is not that of the whole text")
	}
	secret := strings.Split(key.Text(), "_")[2]
	for _, shown := range []string{fmt.Sprint(key), fmt.Sprintf("%#v", key), fmt.Sprintf("%+v", key), fmt.Sprintf("%v", &key), fmt.Sprintf("%+v", []any{key})} {
		if strings.Contains(shown, secret) {
			t.Errorf("the secret is shown: %s", shown)
		}
	}
	if allocs := testing.AllocsPerRun(100, func() { _, _ = identity.ParseAPIKey(key.Text()[:]) }); allocs > 4 {
		t.Errorf("%v allocations to make a key's text and read it", allocs)
	}
}

// Every single character of a key counts: whatever one is exchanged for, the
// key is refused by itself.
func TestParseAPIKeyRefuses(t *testing.T) {
	text := newKey(t).Text()
	bad := []string{
		"", "x", "dvk_", text[:len(text)-1], text + "0", text + "\n", " " + text, strings.ToUpper(text),
		"dvj" + text[3:], strings.ReplaceAll(text, "_", "-"), strings.Repeat("dvk_", 24), strings.Repeat("_", len(text)),
	}
	for i := range len(text) {
		for _, c := range "0123456789abcdefABCDEF_ .\x00\xff" {
			if changed := text[:i] + string(c) + text[i+1:]; changed != text {
				bad = append(bad, changed)
			}
		}
	}
	for _, b := range bad {
		_, err := identity.ParseAPIKey(b)
		if !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%q: %v", b, err)
		}
		if err != nil && len(b) > 30 && strings.Contains(err.Error(), b[10:30]) {
			t.Errorf("the error repeats the key: %v", err)
		}
	}
}

// What is read is what was written, and an error says nothing of the text.
func FuzzAPIKey(f *testing.F) {
	f.Add("dvk_0000000000000000_0000000000000000000000000000000000000000000000000000000000000000_00000000")
	f.Add("dvk_")
	f.Add("")
	f.Add(newKey(f).Text())
	f.Fuzz(func(t *testing.T, text string) {
		key, err := identity.ParseAPIKey(text)
		switch {
		case err == nil && key.Text() != text:
			t.Errorf("%q is read as %q", text, key.Text())
		case err != nil && !errdefs.Is(err, errdefs.InvalidArgument):
			t.Errorf("%q: %v", text, err)
		case err != nil && len(text) >= 20 && strings.Contains(err.Error(), text):
			t.Errorf("the error repeats %q", text)
		}
	})
}
