package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"regexp"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// JoinToken is the secret that enrols one node or replica. Its text form is
//
//	dvj_<id>_<secret>_<SHA-256 of the CA's certificate>_<checksum>
//
// all in lower-case hex: the fingerprint lets the newcomer recognise the
// cluster, the checksum rejects a typing error before anything is asked.
type JoinToken struct {
	// ID names the token in records, lists and logs.
	ID string
	// Fingerprint is the CA's, as certs.Fingerprint gives it.
	Fingerprint string

	secret string
}

// JoinTokenPrefix begins the text of every join token.
const JoinTokenPrefix = "dvj_"

const (
	tokenIDBytes     = 8
	tokenSecretBytes = 32
)

var tokenPattern = regexp.MustCompile(`^` + JoinTokenPrefix + `([0-9a-f]{16})_([0-9a-f]{64})_([0-9a-f]{64})_([0-9a-f]{8})$`)

// NewJoinToken makes a token with 256 random bits for the cluster whose CA has
// the fingerprint.
func NewJoinToken(fingerprint string) (JoinToken, error) {
	raw := make([]byte, tokenIDBytes+tokenSecretBytes)
	if _, err := rand.Read(raw); err != nil {
		return JoinToken{}, fmt.Errorf("make a join token: %w", err)
	}
	return JoinToken{
		ID:          hex.EncodeToString(raw[:tokenIDBytes]),
		Fingerprint: fingerprint,
		secret:      hex.EncodeToString(raw[tokenIDBytes:]),
	}, nil
}

// ParseJoinToken reads a token's text form. Its error never repeats the text.
func ParseJoinToken(text string) (JoinToken, error) {
	parts := tokenPattern.FindStringSubmatch(text)
	if parts == nil {
		return JoinToken{}, errdefs.New(errdefs.InvalidArgument, "JOIN_TOKEN_MALFORMED",
			"token: this is not a join token; expected dvj_<id>_<secret>_<fingerprint>_<checksum>, whole and unchanged").With("field", "token")
	}
	t := JoinToken{ID: parts[1], secret: parts[2], Fingerprint: parts[3]}
	if t.checksum() != parts[4] {
		return JoinToken{}, errdefs.New(errdefs.InvalidArgument, "JOIN_TOKEN_MALFORMED",
			"token: the join token's checksum is wrong; copy it again, whole").With("field", "token")
	}
	return t, nil
}

// Text returns the whole token. It is for the one who asked for it, once.
func (t JoinToken) Text() string { return t.body() + "_" + t.checksum() }

// String names the token without its secret.
func (t JoinToken) String() string { return "join token " + t.ID }

// GoString names the token without its secret.
func (t JoinToken) GoString() string { return t.String() }

// SecretHash is what is stored of the secret: its SHA-256. The secret is
// random, so that a slow hash would add nothing.
func (t JoinToken) SecretHash() []byte {
	sum := sha256.Sum256([]byte(t.secret))
	return sum[:]
}

// Matches compares the secret with a stored hash in constant time.
func (t JoinToken) Matches(hash []byte) bool {
	return subtle.ConstantTimeCompare(t.SecretHash(), hash) == 1
}

func (t JoinToken) body() string {
	return JoinTokenPrefix + t.ID + "_" + t.secret + "_" + t.Fingerprint
}

func (t JoinToken) checksum() string {
	return fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(t.body())))
}
