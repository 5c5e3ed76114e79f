package authn_test

import (
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Nothing but the one good key opens anything, whatever the header; and no
// refusal repeats what was sent.
func FuzzBearer(f *testing.F) {
	r := newRecords()
	key := r.newKey(f, "ci", time.Time{}).Text()
	a := authenticator(authn.BearersConfig{Tokens: tokens(f, authn.TokensConfig{})})
	for _, header := range []string{"", "Bearer " + key, "bearer  " + key + " ", "Basic YTpi", "Bearer", "Bearer a.b.c", "Bearer dvk_", key, "Bearer " + key + ",x"} {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, header string) {
		c, _, err := a.Authenticate(connect().call(header), r.s, now)
		scheme, text, _ := strings.Cut(header, " ")
		if good := strings.EqualFold(scheme, "bearer") && strings.Trim(text, " ") == key; good != (err == nil) {
			t.Fatalf("%q: %+v, %v", header, c, err)
		}
		if err == nil {
			return
		}
		if e := errdefs.FromStatus(errdefs.ToStatus(err, "")); e.Kind != errdefs.Unauthenticated ||
			len(header) > 24 && (strings.Contains(e.Message, header[8:]) || strings.Contains(authn.Reason(err), header[8:])) {
			t.Errorf("%q: %v", header, err)
		}
	})
}

// A header and a payload of any kind, well signed by the issuer, are read
// strictly: what is accepted has all that a token must have.
func FuzzToken(f *testing.F) {
	a := authenticator(authn.BearersConfig{Tokens: tokens(f, authn.TokensConfig{TrustPermissions: true})})
	r := newRecords()
	f.Add(`{"alg":"RS256"}`, `{"iss":"debvisor-auth","aud":"debvisor-rpc","sub":"ada","exp":1800000000}`)
	f.Add(`{"alg":"none"}`, `{}`)
	f.Add(`{"alg":"RS256","alg":"none","kid":"../../x"}`, `{"exp":1e999,"sub":{},"aud":[[]]}`)
	f.Fuzz(func(t *testing.T, header, payload string) {
		c, _, err := a.Authenticate(connect().call("Bearer "+forge(t, header, payload)), r.s, now)
		switch {
		case err != nil:
			if e := errdefs.FromStatus(errdefs.ToStatus(err, "")); e.Kind != errdefs.Unauthenticated {
				t.Errorf("%q %q: %v", header, payload, err)
			}
		case !strings.Contains(header, "RS256"), !strings.Contains(payload, "exp") && !strings.Contains(payload, `\u`):
			t.Errorf("%q %q: taken for %+v", header, payload, c)
		case c.Name == "" || strings.ContainsAny(c.Name, ":/ \n") || !c.Expires.After(now) || c.Kind != authn.JWT:
			t.Errorf("%q %q: taken for %+v", header, payload, c)
		}
	})
}
