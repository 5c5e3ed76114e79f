package controlplane

import (
	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/shared/run"
)

// JWT says which tokens the callers' listener accepts, by the flags of serve.
// All empty: none.
type JWT struct {
	// Key is the file of the issuer's public keys or certificates, PEM; JWKS the
	// https address of its key set, in the place of it; JWKSCA the file of the
	// CAs that vouch for the address, PEM; empty: the host's.
	Key, JWKS, JWKSCA string
	// Issuer and Audience must be in each token; empty: debvisor-auth and
	// debvisor-rpc.
	Issuer, Audience string
	// Algorithms are those of RS256 and ES256 that are accepted; empty: RS256.
	Algorithms []string
	// TrustPermissions grants what the claim "permissions" lists.
	TrustPermissions bool
}

// openTokens makes what accepts JWTs, where there is an issuer, and reads the
// files that it needs, which stops the start if one is broken.
func (r *replica) openTokens() error {
	jwt := r.cfg.JWT
	if jwt.Key == "" && jwt.JWKS == "" {
		return nil
	}
	var err error
	r.tokens, err = authn.NewTokens(authn.TokensConfig{
		KeyFile: jwt.Key, JWKS: jwt.JWKS, JWKSCA: jwt.JWKSCA, Issuer: jwt.Issuer, Audience: jwt.Audience,
		Algorithms: jwt.Algorithms, TrustPermissions: jwt.TrustPermissions, Log: r.cfg.Log.Named("jwt"),
	})
	return err
}

// openBearers makes what lets callers in without a certificate.
func (r *replica) openBearers() *authn.Bearers {
	r.uses = access.NewUses(access.UsesConfig{
		View: r.view, File: r.access, Store: r.store, Replica: r.member.Record().Name, Log: r.cfg.Log.Named("access"),
	})
	return authn.NewBearers(authn.BearersConfig{File: r.access, Tokens: r.tokens, Uses: r.uses})
}

// runBearers adds what keeps the issuer's keys current and writes down uses of
// keys.
func (r *replica) runBearers(group *run.Group) {
	group.Add("uses of keys", r.uses.Run)
	if r.tokens != nil {
		group.Add("keys of tokens' issuer", r.tokens.Run)
	}
}
