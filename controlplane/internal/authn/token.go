package authn

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

const (
	// tokenLeeway is how far an issuer's clock may be ahead of ours. A token's
	// end is its end.
	tokenLeeway = 30 * time.Second
	// tokenKept is how long a token that was verified is not verified again.
	tokenKept = time.Minute
)

// The issuer and the audience of tokens, where no others are configured.
const (
	DefaultIssuer   = "debvisor-auth"
	DefaultAudience = "debvisor-rpc"
)

// TokensConfig says which JWTs are accepted, by the flags of serve.
type TokensConfig struct {
	// KeyFile has the issuer's public keys or certificates, PEM; or else JWKS is
	// the https address of its key set. Exactly one is given.
	KeyFile, JWKS string
	// JWKSCA is the file of the CAs that vouch for that address, PEM; empty: the
	// host's.
	JWKSCA string
	// Issuer and Audience are the defaults where empty.
	Issuer, Audience string
	// Algorithms are RS256 alone where empty; ES256 is the other one known.
	Algorithms []string
	// TrustPermissions grants what the claim "permissions" lists.
	TrustPermissions bool
	Log              hclog.Logger
}

// Tokens tells callers by the JWTs that they bear. It is safe for use by many
// goroutines.
type Tokens struct {
	cfg   TokensConfig
	keys  source
	cache tokenCache
}

// source is where the issuer's keys come from.
type source interface {
	// Current is what is known of them, never nil.
	Current() *keySet
	// Unknown is told of a token that none of them has signed, and waits a while
	// for news where there may be some.
	Unknown(ctx context.Context, now time.Time)
	// Run keeps them current until ctx ends; it then returns nil.
	Run(ctx context.Context) error
	// Reload has them read anew at once. An error changes nothing.
	Reload() error
}

// NewTokens checks the configuration and reads the files that it names; from an
// address nothing is fetched before Run. Its error is one line that names the
// flag.
func NewTokens(cfg TokensConfig) (*Tokens, error) {
	if cfg.Issuer == "" {
		cfg.Issuer = DefaultIssuer
	}
	if cfg.Audience == "" {
		cfg.Audience = DefaultAudience
	}
	if len(cfg.Algorithms) == 0 {
		cfg.Algorithms = []string{jwt.SigningMethodRS256.Alg()}
	}
	for _, a := range cfg.Algorithms {
		if a != jwt.SigningMethodRS256.Alg() && a != jwt.SigningMethodES256.Alg() {
			return nil, errdefs.Field("--jwt-algorithms", a, "RS256, ES256 or both")
		}
	}
	t := &Tokens{cfg: cfg}
	var err error
	switch {
	case (cfg.KeyFile == "") == (cfg.JWKS == ""):
		return nil, errdefs.New(errdefs.InvalidArgument, "INVALID_FIELD", "--jwt-key and --jwt-jwks: exactly one of them says where the issuer's keys are")
	case cfg.KeyFile != "" && cfg.JWKSCA != "":
		return nil, errdefs.Field("--jwt-jwks-ca", cfg.JWKSCA, "nothing without --jwt-jwks")
	case cfg.KeyFile != "":
		t.keys, err = openKeyFile(cfg.KeyFile, cfg.Algorithms, cfg.Log)
	default:
		t.keys, err = newJWKS(cfg.JWKS, cfg.JWKSCA, cfg.Algorithms, cfg.Log)
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// Run keeps the issuer's keys current until ctx ends; it then returns nil.
func (t *Tokens) Run(ctx context.Context) error { return t.keys.Run(ctx) }

// Reload reads the issuer's keys anew: from a file now, and what is wrong with it
// changes nothing; from an address they are fetched soon.
func (t *Tokens) Reload() error { return t.keys.Reload() }

// authenticate tells who bears a token. One that was verified a short while ago
// is known by its hash, for as long as the keys are the same.
func (t *Tokens) authenticate(ctx context.Context, text string, digest [sha256.Size]byte, now time.Time) (*Caller, error) {
	keys := t.keys.Current()
	if c := t.cache.get(digest, keys, now); c != nil {
		return c, nil
	}
	form, err := readForm(text, t.cfg.Algorithms)
	if err != nil {
		return nil, refuseToken(err.Error())
	}
	if len(keys.keys) == 0 {
		return nil, errdefs.New(errdefs.Unavailable, "TOKEN_KEYS_UNAVAILABLE",
			"the keys of the tokens' issuer could not be fetched yet").WithRetry(time.Second)
	}
	candidates := keys.candidates(form)
	if len(candidates) == 0 {
		t.keys.Unknown(ctx, now)
		keys = t.keys.Current()
		candidates = keys.candidates(form)
	}
	c, err := t.verify(text, candidates, now)
	if err != nil {
		return nil, err
	}
	c.CredentialID = hex.EncodeToString(digest[:8])
	t.cache.put(digest, tokenEntry{caller: c, keys: keys, until: earlier(c.Expires, now.Add(tokenKept))})
	return c, nil
}

// verify tells who a token is for, if one of the keys has signed it. What is
// wrong with it is told to the bearer only once it is known to be the issuer's.
func (t *Tokens) verify(text string, candidates []verifyKey, now time.Time) (*Caller, error) {
	parser := jwt.NewParser(
		jwt.WithValidMethods(t.cfg.Algorithms), jwt.WithStrictDecoding(),
		jwt.WithIssuer(t.cfg.Issuer), jwt.WithAudience(t.cfg.Audience),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(tokenLeeway),
		jwt.WithTimeFunc(func() time.Time { return now }),
	)
	err := errors.New("no key of the issuer has its kid or is of its algorithm")
	for _, key := range candidates {
		var claims tokenClaims
		_, err = parser.ParseWithClaims(text, &claims, func(*jwt.Token) (any, error) { return key.public, nil })
		switch {
		case err == nil:
			return t.caller(&claims, key, now)
		case errors.Is(err, jwt.ErrTokenExpired):
			return nil, tokenExpired(claims.expires.Time)
		case errors.Is(err, jwt.ErrTokenInvalidClaims):
			return nil, refuseClaims(err.Error())
		}
	}
	return nil, refuseToken(err.Error())
}

// caller makes the caller of claims that the issuer has signed.
func (t *Tokens) caller(claims *tokenClaims, key verifyKey, now time.Time) (*Caller, error) {
	if !now.Before(claims.expires.Time) {
		return nil, tokenExpired(claims.expires.Time)
	}
	name, err := claims.principal()
	if err != nil {
		return nil, refuseClaims(err.Error())
	}
	if err := identity.CheckPrincipal(name); err != nil {
		return nil, refuseClaims("its principal is no name that a principal can have")
	}
	c := &Caller{
		Identity: identity.Identity{Principal: &identity.Principal{Name: name}},
		Name:     name, Kind: JWT, Expires: claims.expires.Time, proof: key.print,
	}
	if t.cfg.TrustPermissions {
		c.Permissions = slices.Clip(claims.permissions)
	}
	return c, nil
}

// check tells whether a token still holds: it has not ended, and its issuer
// still stands by the key that it was signed with.
func (t *Tokens) check(c *Caller, now time.Time) error {
	if !now.Before(c.Expires) {
		return tokenExpired(c.Expires)
	}
	if _, ok := t.keys.Current().prints[c.proof]; !ok {
		return refuseToken("its issuer no longer has the key that it was signed with")
	}
	return nil
}

// refuseToken refuses a token of which it is not known that it is the issuer's:
// its bearer hears no more than that.
func refuseToken(reason string) error {
	return errdefs.New(errdefs.Unauthenticated, "TOKEN_NOT_ACCEPTED", "the JWT is not accepted").WithCause(errors.New(reason))
}

// refuseClaims refuses a token that the issuer has signed, and says why.
func refuseClaims(why string) error {
	return errdefs.New(errdefs.Unauthenticated, "TOKEN_NOT_ACCEPTED", "the JWT is not accepted: %s", why)
}

func tokenExpired(at time.Time) error {
	return errdefs.New(errdefs.Unauthenticated, "TOKEN_EXPIRED", "the JWT ended at %s", at.UTC().Format(time.RFC3339))
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

var errForm = errors.New("it is no JWT")

func badForm(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errForm, fmt.Sprintf(format, args...))
}
