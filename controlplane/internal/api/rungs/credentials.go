package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/identity"
)

// life is how long caller's key and token can be used.
const life = time.Hour

// issueKey makes an API key of caller's.
func (h *house) issueKey(d *cluster.Draft) error {
	key, err := identity.NewAPIKey()
	if err != nil {
		return fmt.Errorf("making an API key: %w", err)
	}
	d.APIKeys.Put(key.ID, &storev1.APIKey{
		Sha256: key.Hash(), Principal: caller, CreatedAt: timestamppb.Now(), ExpiresAt: timestamppb.New(time.Now().Add(life)),
	}, 1)
	h.offer.APIKey = key.Text()
	return nil
}

// issueToken makes a JWT of caller's, and what accepts it.
func (h *house) issueToken() (*authn.Tokens, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("making the issuer's key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encoding the issuer's key: %w", err)
	}
	path := filepath.Join(h.dir, "issuer.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		return nil, fmt.Errorf("writing the issuer's key: %w", err)
	}
	now := time.Now()
	h.offer.JWT, err = jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iss": authn.DefaultIssuer, "aud": authn.DefaultAudience, "sub": caller, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(life).Unix(),
	}).SignedString(key)
	if err != nil {
		return nil, fmt.Errorf("signing a token: %w", err)
	}
	tokens, err := authn.NewTokens(authn.TokensConfig{KeyFile: path, Log: hclog.NewNullLogger()})
	if err != nil {
		return nil, fmt.Errorf("reading the issuer's key: %w", err)
	}
	return tokens, nil
}
