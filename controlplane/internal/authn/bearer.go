package authn

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/rpc"
)

// maxBearer is the most that a key or a token may hold, bytes.
const maxBearer = 8 << 10

// BearersConfig says which bearers are accepted. All of it may be missing.
type BearersConfig struct {
	// File has keys and principals beside those in etcd.
	File *accessfile.File
	// Tokens accepts JWTs.
	Tokens *Tokens
	// Uses is told of each call with a key.
	Uses Uses
}

// Uses notes when and from where keys are used.
type Uses interface {
	// Note is on the way of every call with a key: it must not wait.
	Note(id, address string, now time.Time)
}

// Bearers tells callers by what they bear: an API key or a JWT. It is safe for
// use by many goroutines.
type Bearers struct {
	keys   keys
	tokens *Tokens
	uses   Uses
}

// NewBearers makes one that accepts keys, and tokens as configured.
func NewBearers(cfg BearersConfig) *Bearers {
	if cfg.File == nil {
		cfg.File = accessfile.None()
	}
	return &Bearers{keys: keys{file: cfg.File}, tokens: cfg.Tokens, uses: cfg.Uses}
}

// accepted is a bearer that was accepted, by its SHA-256.
type accepted struct {
	digest [sha256.Size]byte
	caller *Caller
}

// authenticate tells who bears a text. The one last accepted on the connection
// is known by its hash.
func (b *Bearers) authenticate(ctx context.Context, v *verdict, text string, s *cluster.Snapshot, now time.Time) (*Caller, bool, error) {
	if len(text) > maxBearer {
		return nil, false, badAuthorization("the key or token is longer than 8 KiB")
	}
	digest := digestOf(text)
	last := v.last.Load()
	first := last == nil || last.digest != digest
	if first {
		caller, err := b.identify(ctx, text, digest, s, now)
		if err != nil {
			return nil, true, err
		}
		last = &accepted{digest: digest, caller: caller}
		v.last.Store(last)
	}
	if last.caller.Kind == APIKey && b.uses != nil {
		b.uses.Note(last.caller.CredentialID, rpc.Address(ctx), now)
	}
	return last.caller, first, nil
}

// identify tells whose text it is: a key of ours by its form, another by its
// hash, a JWT by its two dots.
func (b *Bearers) identify(ctx context.Context, text string, digest [sha256.Size]byte, s *cluster.Snapshot, now time.Time) (*Caller, error) {
	var id string
	if strings.HasPrefix(text, identity.APIKeyPrefix) {
		key, err := identity.ParseAPIKey(text)
		if err != nil {
			return nil, errdefs.New(errdefs.Unauthenticated, "KEY_MALFORMED",
				"the API key is not whole: its form or its checksum is wrong; copy it again")
		}
		id = key.ID
	}
	caller, reason := b.keys.find(s, id, digest, now)
	switch {
	case caller != nil:
		return caller, nil
	case id != "" || strings.Count(text, ".") != 2 || b.keys.knows(s, digest):
		return nil, keyNotAccepted(reason)
	case b.tokens == nil:
		return nil, errdefs.New(errdefs.Unauthenticated, "NO_TOKENS",
			"this cluster accepts no JWT: it was told of no issuer's key (debvisor-rpcd serve --jwt-key or --jwt-jwks)")
	}
	return b.tokens.authenticate(ctx, text, digest, now)
}

// check tells whether a bearer's credential still holds.
func (b *Bearers) check(c *Caller, s *cluster.Snapshot, now time.Time) error {
	if c.Kind == APIKey {
		if reason := b.keys.check(c, s, now); reason != "" {
			return keyNotAccepted(reason)
		}
		return nil
	}
	if b.tokens == nil {
		return refuseToken("no issuer's key is configured any more")
	}
	if _, revoked := s.Revoked[asSerial(c.CredentialID)]; revoked {
		return errdefs.New(errdefs.Unauthenticated, "TOKEN_REVOKED", "the token %s has been revoked", c.CredentialID)
	}
	return b.tokens.check(c, now)
}

// asSerial gives a token's id as it is noted once it has been revoked: as if it
// were a certificate's serial, a number without zeros before it.
func asSerial(id string) string {
	for strings.HasPrefix(id, "00") {
		id = id[2:]
	}
	return id
}

// bearer gives the key or token that a call carries; "" where it carries none.
// What there is of it is in no error.
func bearer(ctx context.Context) (string, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	switch len(values) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", badAuthorization("there is more than one of it")
	}
	scheme, text, ok := strings.Cut(values[0], " ")
	text = strings.Trim(text, " ")
	if !ok || !strings.EqualFold(scheme, "bearer") || text == "" {
		return "", badAuthorization("it is of another scheme, or empty")
	}
	return text, nil
}

func badAuthorization(why string) error {
	return errdefs.New(errdefs.Unauthenticated, "BAD_AUTHORIZATION",
		"authorization: %s; expected exactly one \"authorization: Bearer <API key or JWT>\"", why)
}

// keyNotAccepted is what every key that is refused gets to hear, whatever the
// reason: to who does not have it, no key is to look nearer to being good than
// another.
func keyNotAccepted(reason string) error {
	return errdefs.New(errdefs.Unauthenticated, "KEY_NOT_ACCEPTED", "the API key is not accepted").WithCause(errors.New(reason))
}

// Reason tells the log and the audit log why a credential was refused, which
// is more than the caller gets to know. There is nothing secret in it.
func Reason(err error) string {
	var e *errdefs.Error
	if !errors.As(err, &e) {
		return ""
	}
	if e.Cause != nil && e.Kind == errdefs.Unauthenticated {
		return e.Message + ": " + e.Cause.Error()
	}
	return e.Message
}

// digestOf is a text's SHA-256.
func digestOf(text string) [sha256.Size]byte {
	var buf [1 << 10]byte // what fits needs no copy on the heap
	return sha256.Sum256(append(buf[:0], text...))
}
