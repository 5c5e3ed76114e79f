package authn_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestToken(t *testing.T) {
	r := newRecords()
	a := authenticator(authn.BearersConfig{Tokens: tokens(t, authn.TokensConfig{})})
	text := sign(t, nil)
	conn := connect()
	for i := range 2 {
		c, first, err := a.Authenticate(conn.call("Bearer "+text), r.s, now)
		if err != nil {
			t.Fatal(authn.Reason(err))
		}
		if first != (i == 0) || c.Name != "ada" || c.Kind != authn.JWT || c.CredentialID != hash(text)[:16] ||
			!c.Expires.Equal(now.Add(10*time.Minute)) || c.Permissions != nil || c.Principal == nil || c.Serial != "" {
			t.Errorf("first %v, taken for %+v", first, c)
		}
		if err := a.Check(c, r.s, now); err != nil {
			t.Error(err)
		}
	}
}

// All these are good, whatever else is in them.
func TestGoodTokens(t *testing.T) {
	a := authenticator(authn.BearersConfig{Tokens: tokens(t, authn.TokensConfig{TrustPermissions: true})})
	for name, change := range map[string]func(jwt.MapClaims){
		"sub alone":            func(c jwt.MapClaims) { delete(c, "user_id"); c["sub"] = "ada" },
		"both the same":        func(c jwt.MapClaims) { c["sub"] = "ada" },
		"a list of audiences":  func(c jwt.MapClaims) { c["aud"] = []string{"panel", "debvisor-rpc"} },
		"no nbf, no iat":       func(c jwt.MapClaims) { delete(c, "nbf"); delete(c, "iat") },
		"an issuer's clock":    func(c jwt.MapClaims) { c["nbf"], c["iat"] = now.Unix()+30, now.Unix()+30 },
		"fractions of seconds": func(c jwt.MapClaims) { c["exp"] = float64(now.Unix()) + 90.7 },
		"claims of others":     func(c jwt.MapClaims) { c["realm_access"] = map[string]any{"roles": []string{"x"}} },
		"no permissions":       func(c jwt.MapClaims) { c["permissions"] = []string{} },
	} {
		if c, _, err := a.Authenticate(connect().call("Bearer "+sign(t, change)), newRecords().s, now); err != nil || c.Name != "ada" {
			t.Errorf("%s: %+v, %s", name, c, authn.Reason(err))
		}
	}
}

func TestPermissionsOfTokens(t *testing.T) {
	text := sign(t, func(c jwt.MapClaims) { c["permissions"] = []string{"storage:*", "node:list"} })
	for _, trusted := range []bool{true, false} {
		a := authenticator(authn.BearersConfig{Tokens: tokens(t, authn.TokensConfig{TrustPermissions: trusted})})
		c, _, err := a.Authenticate(connect().call("Bearer "+text), newRecords().s, now)
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"storage:*", "node:list"}; trusted && !slices.Equal(c.Permissions, want) || !trusted && c.Permissions != nil {
			t.Errorf("trusted %v: %q", trusted, c.Permissions)
		}
	}
}

func segment(v any) string {
	if text, ok := v.(string); ok {
		return base64.RawURLEncoding.EncodeToString([]byte(text))
	}
	content, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(content)
}

// forge makes a token of any header and payload, well signed by the issuer.
func forge(t testing.TB, header, payload any) string {
	t.Helper()
	body := segment(header) + "." + segment(payload)
	sum := sha256.Sum256([]byte(body))
	sig, err := rsa.SignPKCS1v15(rand.Reader, issuerKey(), crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return body + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func hmacOf(body string, secret []byte) string {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(body))
	return body + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// badTokens are all refused. Most are well signed by the issuer: what is wrong
// is only what the name says.
func badTokens(t testing.TB) map[string]string {
	t.Helper()
	good := sign(t, nil)
	parts := strings.Split(good, ".")
	rs256 := map[string]any{"alg": "RS256", "typ": "JWT"}
	header := func(change map[string]any) string {
		h := map[string]any{"alg": "RS256", "typ": "JWT"}
		for k, v := range change {
			h[k] = v
		}
		return forge(t, h, goodClaims())
	}
	claim := func(name string, value any) string {
		return forge(t, rs256, func() jwt.MapClaims { c := goodClaims(); c[name] = value; return c }())
	}
	without := func(name string) string { return sign(t, func(c jwt.MapClaims) { delete(c, name) }) }
	raw := func(payload string) string { return forge(t, rs256, payload) }
	claims, err := json.Marshal(goodClaims())
	if err != nil {
		t.Fatal(err)
	}
	inside := string(claims[1 : len(claims)-1])
	signed := func(method jwt.SigningMethod, key any) string {
		text, err := jwt.NewWithClaims(method, goodClaims()).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	public := publicPEM(t, issuerKey().Public())
	hs256 := segment(map[string]any{"alg": "HS256", "typ": "JWT"}) + "." + parts[1]
	flipped := []byte(parts[2])
	flipped[10] ^= 1
	unknownKid := func(kid any) string { return header(map[string]any{"kid": kid}) }
	bad := map[string]string{
		// Algorithms.
		"none":                    segment(map[string]any{"alg": "none", "typ": "JWT"}) + "." + parts[1] + ".",
		"none with a signature":   segment(map[string]any{"alg": "none"}) + "." + parts[1] + "." + parts[2],
		"None":                    segment(map[string]any{"alg": "None"}) + "." + parts[1] + "." + parts[2],
		"nOnE, well signed":       header(map[string]any{"alg": "nOnE"}),
		"HS256 by the public PEM": hmacOf(hs256, public),
		"HS256 by the public DER": hmacOf(hs256, issuerKey().N.Bytes()),
		"HS256 by nothing":        hmacOf(hs256, nil),
		"RS256 said, HS256 made":  hmacOf(parts[0]+"."+parts[1], public),
		"RS384":                   signed(jwt.SigningMethodRS384, issuerKey()),
		"RS512":                   signed(jwt.SigningMethodRS512, issuerKey()),
		"PS256":                   signed(jwt.SigningMethodPS256, issuerKey()),
		"ES256 unasked":           signed(jwt.SigningMethodES256, ecKey()),
		"rs256":                   header(map[string]any{"alg": "rs256"}),
		"no algorithm":            forge(t, map[string]any{"typ": "JWT"}, goodClaims()),
		"an algorithm of numbers": header(map[string]any{"alg": 256}),
		"a list of algorithms":    header(map[string]any{"alg": []string{"RS256"}}),
		"a null algorithm":        header(map[string]any{"alg": nil}),
		// Signatures.
		"another's key":            signed(jwt.SigningMethodRS256, strangerKey()),
		"a flipped bit":            parts[0] + "." + parts[1] + "." + string(flipped),
		"no signature":             parts[0] + "." + parts[1] + ".",
		"half a signature":         parts[0] + "." + parts[1] + "." + parts[2][:100],
		"a signature of zeros":     parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 256)),
		"another's payload":        parts[0] + "." + segment(map[string]any{"user_id": "root"}) + "." + parts[2],
		"another's header":         segment(map[string]any{"alg": "RS256", "x": 1}) + "." + parts[1] + "." + parts[2],
		"a changed payload's case": parts[0] + "." + strings.ToUpper(parts[1]) + "." + parts[2],
		// Headers.
		"crit":                  header(map[string]any{"crit": []string{"exp"}}),
		"an empty crit":         header(map[string]any{"crit": []string{}}),
		"b64":                   header(map[string]any{"b64": false, "crit": []string{"b64"}}),
		"jku":                   header(map[string]any{"jku": "https://attacker.example/jwks.json"}),
		"x5u":                   header(map[string]any{"x5u": "https://attacker.example/cert.pem"}),
		"jwk":                   header(map[string]any{"jwk": map[string]any{"kty": "RSA"}}),
		"x5c":                   header(map[string]any{"x5c": []string{"MIIB"}}),
		"another type":          header(map[string]any{"typ": "JWE"}),
		"a nested type":         header(map[string]any{"typ": map[string]any{"JWT": 1}}),
		"kid traversal":         unknownKid("../../../../dev/null"),
		"kid of a path":         unknownKid("/etc/debvisor/rpc/ca.pem"),
		"kid of a query":        unknownKid("x' UNION SELECT 'key'--"),
		"kid of a command":      unknownKid("key|/bin/true"),
		"kid with a NUL":        unknownKid("key\x00.pem"),
		"kid of a number":       unknownKid(7),
		"kid of a list":         unknownKid([]string{"a"}),
		"an empty kid":          unknownKid(""),
		"a long kid":            unknownKid(strings.Repeat("k", 257)),
		"two algorithms":        forge(t, `{"alg":"RS256","alg":"none"}`, goodClaims()),
		"none, then RS256":      forge(t, `{"alg":"none","alg":"RS256"}`, goodClaims()),
		"two kids":              forge(t, `{"alg":"RS256","kid":"a","kid":"b"}`, goodClaims()),
		"a header that goes on": forge(t, `{"alg":"RS256"}{"alg":"none"}`, goodClaims()),
		"a header of a list":    forge(t, `["RS256"]`, goodClaims()),
		"a header of nothing":   forge(t, ``, goodClaims()),
		"a null header":         forge(t, `null`, goodClaims()),
		"a deep header":         forge(t, `{"alg":"RS256","x":`+strings.Repeat("[", 40)+strings.Repeat("]", 40)+`}`, goodClaims()),
		"a header not in UTF-8": forge(t, "{\"alg\":\"RS256\",\"x\":\"\xff\"}", goodClaims()),
		// Issuer, audience, times.
		"no issuer":            without("iss"),
		"another issuer":       claim("iss", "debvisor-auth2"),
		"the issuer's case":    claim("iss", "Debvisor-Auth"),
		"a list of issuers":    claim("iss", []string{"debvisor-auth"}),
		"an empty issuer":      claim("iss", ""),
		"no audience":          without("aud"),
		"another audience":     claim("aud", "debvisor-rpc2"),
		"an empty audience":    claim("aud", ""),
		"no audiences":         claim("aud", []string{}),
		"audiences of numbers": claim("aud", []any{"debvisor-rpc", 7}),
		"nested audiences":     claim("aud", []any{[]string{"debvisor-rpc"}}),
		"a null audience":      claim("aud", nil),
		"no end":               without("exp"),
		"ended":                claim("exp", now.Add(-time.Second).Unix()),
		"ending now":           claim("exp", now.Unix()),
		"ended long ago":       claim("exp", 0),
		"a negative end":       claim("exp", -5),
		"an end in words":      claim("exp", "9999999999"),
		"a null end":           claim("exp", nil),
		"an end without end":   raw(`{` + strings.ReplaceAll(inside, `"exp":`, `"exp":1e400,"ex":`) + `}`),
		"an end that wraps":    claim("exp", math.MaxFloat64),
		"an end past 2^63":     claim("exp", uint64(math.MaxUint64)),
		"an end of yes":        claim("exp", true),
		"a nested end":         claim("exp", map[string]any{"exp": now.Add(time.Hour).Unix()}),
		"future nbf":           claim("nbf", now.Add(31*time.Second).Unix()),
		"nbf in words":         claim("nbf", "0"),
		"future iat":           claim("iat", now.Add(31*time.Second).Unix()),
		"iat in words":         claim("iat", "now"),
		// Principals and permissions.
		"nobody":                   without("user_id"),
		"an empty name":            claim("user_id", ""),
		"two names":                claim("sub", "root"),
		"a name of a number":       claim("user_id", 7),
		"names of a list":          claim("user_id", []string{"ada"}),
		"a nested name":            claim("user_id", map[string]any{"name": "ada"}),
		"a null name":              claim("user_id", nil),
		"sub of a number":          claim("sub", 7),
		"an agent":                 claim("user_id", "agent:node-1"),
		"a replica":                claim("user_id", "replica:r1"),
		"the system":               claim("user_id", "system:access"),
		"a name with a slash":      claim("user_id", "../operator"),
		"a name with a space":      claim("user_id", "ada lovelace"),
		"a name with a line break": claim("user_id", "ada\noperator"),
		"a name with a NUL":        claim("user_id", "ada\x00"),
		"a name beyond ASCII":      claim("user_id", "ad\u0430"),
		"a long name":              claim("user_id", strings.Repeat("a", 129)),
		"permissions in a word":    claim("permissions", "storage:*"),
		"permissions of numbers":   claim("permissions", []any{1}),
		"nested permissions":       claim("permissions", []any{[]string{"storage:*"}}),
		"permission for all":       claim("permissions", []string{"*"}),
		"an inner wildcard":        claim("permissions", []string{"storage:*:create"}),
		"an empty permission":      claim("permissions", []string{""}),
		"a permission's case":      claim("permissions", []string{"Node:List"}),
		"null permissions":         claim("permissions", nil),
		// Payloads.
		"two names, by one member": raw(`{` + inside + `,"user_id":"root"}`),
		"two ends":                 raw(`{"exp":1,` + inside + `}`),
		"two names, nested":        raw(`{` + inside + `,"x":{"a":1,"a":2}}`),
		"a name in escapes twice":  raw(`{` + inside + `,"user_i\u0064":"root"}`),
		"a payload that goes on":   raw(`{` + inside + `} {}`),
		"a payload of a list":      raw(`[{` + inside + `}]`),
		"a payload of nothing":     raw(``),
		"a null payload":           raw(`null`),
		"a payload not in UTF-8":   raw(`{` + inside + ",\"x\":\"\xc3\x28\"}"),
		"a deep payload":           raw(`{` + inside + `,"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`),
		"broken JSON":              raw(`{` + inside),
		// Forms.
		"standard base64": forge(t, rs256, goodClaims())[:4] + "+/" + good[6:],
		"padded":          parts[0] + "==." + parts[1] + "." + parts[2],
		"a line break":    parts[0] + "." + parts[1][:8] + "\n" + parts[1][8:] + "." + parts[2],
		"a loose last bit": parts[0] + "." + parts[1] + "." + parts[2][:len(parts[2])-1] + func() string {
			const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
			return string(letters[strings.IndexByte(letters, parts[2][len(parts[2])-1])|1])
		}(),
		"a space":          parts[0] + ". " + parts[1] + "." + parts[2],
		"two parts":        parts[0] + "." + parts[1],
		"four parts":       good + "." + parts[2],
		"five parts (JWE)": good + "." + parts[1] + "." + parts[2],
		"dots alone":       "..",
		"100,000 dots":     strings.Repeat(".", 100_000),
		"8,000 dots":       strings.Repeat(".", 8000),
		"over 8 KiB":       claim("x", strings.Repeat("x", 7000)),
		"JSON form":        `{"protected":"` + parts[0] + `","payload":"` + parts[1] + `","signature":"` + parts[2] + `"}`,
		"twice":            good + " " + good,
	}
	return bad
}

func TestBadTokens(t *testing.T) {
	bad := badTokens(t)
	if len(bad) < 60 {
		t.Fatalf("%d bad tokens are too few", len(bad))
	}
	a := authenticator(authn.BearersConfig{Tokens: tokens(t, authn.TokensConfig{TrustPermissions: true})})
	r := newRecords()
	// What is made in the same way and has nothing wrong is good; that the cache
	// knows it helps none of the others.
	for _, good := range []string{
		sign(t, nil), forge(t, map[string]any{"alg": "RS256"}, goodClaims()),
		forge(t, `{"alg":"RS256","typ":"at+JWT","kid":"2026/11:key=1","x5t":"a"}`, goodClaims()),
	} {
		if _, _, err := a.Authenticate(connect().call("Bearer "+good), r.s, now); err != nil {
			t.Fatal(authn.Reason(err))
		}
	}
	for name, text := range bad {
		c, _, err := a.Authenticate(connect().call("Bearer "+text), r.s, now)
		e := errdefs.FromStatus(errdefs.ToStatus(err, ""))
		if err == nil || e.Kind != errdefs.Unauthenticated {
			t.Errorf("%s: taken for %+v, %v", name, c, err)
			continue
		}
		if last := strings.LastIndex(text, "."); last > 0 && len(text)-last > 20 && strings.Contains(authn.Reason(err), text[last+1:]) {
			t.Errorf("%s: the reason repeats the token: %s", name, authn.Reason(err))
		}
	}
}

// What is wrong with a token that the issuer has not signed is nobody's
// business; what is wrong with one that it has, its bearer must know.
func TestWhatTheBearerIsTold(t *testing.T) {
	bad := badTokens(t)
	a := authenticator(authn.BearersConfig{Tokens: tokens(t, authn.TokensConfig{})})
	for name, want := range map[string]string{
		"another's key": "the JWT is not accepted", "none": "the JWT is not accepted", "kid traversal": "the JWT is not accepted",
		"another issuer": "invalid issuer", "another audience": "invalid audience", "two names": "differ", "ended": "ended at 2026-11-20T11:59:59Z",
		"ended long ago": "ended at 1970-01-01T00:00:00Z", "future nbf": "not valid yet", "an agent": "no name that a principal can have",
	} {
		_, _, err := a.Authenticate(connect().call("Bearer "+bad[name]), newRecords().s, now)
		message := errdefs.FromStatus(errdefs.ToStatus(err, "")).Message
		if !strings.Contains(message, want) || want == "the JWT is not accepted" && message != want {
			t.Errorf("%s: %q, want %q", name, message, want)
		}
	}
}

func TestES256WhereConfigured(t *testing.T) {
	text, err := jwt.NewWithClaims(jwt.SigningMethodES256, goodClaims()).SignedString(ecKey())
	if err != nil {
		t.Fatal(err)
	}
	both := append(publicPEM(t, ecKey().Public()), publicPEM(t, issuerKey().Public())...)
	a := authenticator(authn.BearersConfig{Tokens: tokens(t, authn.TokensConfig{
		KeyFile: write(t, "both.pem", both), Algorithms: []string{"RS256", "ES256"},
	})})
	r := newRecords()
	for _, good := range []string{text, sign(t, nil)} {
		if c, _, err := a.Authenticate(connect().call("Bearer "+good), r.s, now); err != nil || c.Name != "ada" {
			t.Errorf("%+v, %s", c, authn.Reason(err))
		}
	}
	// The algorithm says which key, and never the other way round.
	body := segment(map[string]any{"alg": "ES256"}) + "." + segment(goodClaims())
	sum := sha256.Sum256([]byte(body))
	rsaSig, err := rsa.SignPKCS1v15(rand.Reader, issuerKey(), crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	der, err := ecdsa.SignASN1(rand.Reader, ecKey(), sum[:])
	if err != nil {
		t.Fatal(err)
	}
	for name, sig := range map[string][]byte{"RSA": rsaSig, "ASN.1": der, "zeros": make([]byte, 64)} {
		_, _, err := a.Authenticate(connect().call("Bearer "+body+"."+base64.RawURLEncoding.EncodeToString(sig)), r.s, now)
		if err == nil {
			t.Errorf("ES256 with a signature of %s is accepted", name)
		}
	}
}

// A token ends for calls that go on: by its time, and by being revoked.
func TestCheckToken(t *testing.T) {
	r := newRecords()
	a := authenticator(authn.BearersConfig{Tokens: tokens(t, authn.TokensConfig{})})
	conn := connect()
	text := sign(t, nil)
	c, _, err := a.Authenticate(conn.call("Bearer "+text), r.s, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Check(c, r.s, c.Expires.Add(-time.Nanosecond)); err != nil {
		t.Error(err)
	}
	wantRefused(t, a.Check(c, r.s, c.Expires), "TOKEN_EXPIRED")
	// The same connection tells no lie about it, nor does the cache.
	again, _, err := a.Authenticate(conn.call("Bearer "+text), r.s, c.Expires)
	if err == nil {
		err = a.Check(again, r.s, c.Expires)
	}
	wantRefused(t, err, "TOKEN_EXPIRED")
	_, _, err = a.Authenticate(connect().call("Bearer "+text), r.s, c.Expires)
	wantRefused(t, err, "TOKEN_EXPIRED")
	s := r.change(func(d *cluster.Draft) { d.Revoked.Put(c.CredentialID, "stolen", 1) })
	wantRefused(t, a.Check(c, s, now), "TOKEN_REVOKED")
	// An id with zeros before it is noted as a number: without them.
	for n := 0; !strings.HasPrefix(c.CredentialID, "00"); n++ {
		text := sign(t, func(c jwt.MapClaims) { c["jti"] = n })
		if c, _, err = a.Authenticate(connect().call("Bearer "+text), r.s, now); err != nil {
			t.Fatal(err)
		}
	}
	serial, ok := new(big.Int).SetString(c.CredentialID, 16)
	if !ok {
		t.Fatal(c.CredentialID)
	}
	s = r.change(func(d *cluster.Draft) { d.Revoked.Put(hex.EncodeToString(serial.Bytes()), "stolen", 1) })
	wantRefused(t, a.Check(c, s, now), "TOKEN_REVOKED")
}

func TestTokensConcurrently(t *testing.T) {
	a := authenticator(authn.BearersConfig{Tokens: tokens(t, authn.TokensConfig{})})
	r := newRecords()
	shared := connect()
	var wg sync.WaitGroup
	for i := range 8 {
		text := sign(t, func(c jwt.MapClaims) { c["user_id"] = fmt.Sprint("user", i%4) })
		wg.Go(func() {
			for range 200 {
				for _, conn := range []connection{shared, connect()} {
					c, _, err := a.Authenticate(conn.call("Bearer "+text), r.s, now)
					if err != nil || c.Name != fmt.Sprint("user", i%4) || a.Check(c, r.s, now) != nil {
						t.Errorf("%+v, %v", c, err)
					}
				}
			}
		})
	}
	wg.Wait()
}
