package identity_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

func TestJoinToken(t *testing.T) {
	fingerprint := strings.Repeat("ab", 32)
	token, err := identity.NewJoinToken(fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	read, err := identity.ParseJoinToken(token.Text())
	if err != nil {
		t.Fatal(err)
	}
	if read != token || read.Fingerprint != fingerprint || !read.Matches(token.SecretHash()) {
		t.Errorf("read %v, made %v", read, token)
	}
	other, err := identity.NewJoinToken(fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	if other.Matches(token.SecretHash()) || token.Matches(nil) {
		t.Error("a wrong secret matches")
	}
	secret := strings.Split(token.Text(), "_")[2]
	for _, shown := range []string{fmt.Sprint(token), fmt.Sprintf("%#v", token), fmt.Sprintf("%+v", token)} {
		if strings.Contains(shown, secret) {
			t.Errorf("the secret is shown: %s", shown)
		}
	}
}

func TestParseJoinTokenRefuses(t *testing.T) {
	token, err := identity.NewJoinToken(strings.Repeat("ab", 32))
	if err != nil {
		t.Fatal(err)
	}
	text := token.Text()
	typo := []byte(text)
	typo[30] ^= 1 // a hex digit becomes another one
	for _, bad := range []string{"", "x", text[:len(text)-1], text + "0", strings.ToUpper(text), string(typo)} {
		_, err := identity.ParseJoinToken(bad)
		if !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
		if err != nil && len(bad) > 20 && strings.Contains(err.Error(), bad[5:20]) {
			t.Errorf("the error repeats the token: %v", err)
		}
	}
}

func FuzzJoinToken(f *testing.F) {
	token, err := identity.NewJoinToken(strings.Repeat("ab", 32))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token.Text())
	f.Fuzz(func(t *testing.T, text string) {
		token, err := identity.ParseJoinToken(text)
		switch {
		case err == nil && token.Text() != text:
			t.Errorf("%q is read as %q", text, token.Text())
		case err != nil && !errdefs.Is(err, errdefs.InvalidArgument):
			t.Errorf("%q: %v", text, err)
		case err != nil && len(text) >= 20 && strings.Contains(err.Error(), text):
			t.Errorf("the error repeats %q", text)
		}
	})
}
