package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// APIKey is the secret by which a service or a CI job calls the API. Its text
// form is
//
//	dvk_<id>_<secret>_<checksum>
//
// all in lower-case hex: the prefix lets scanners for secrets find a leaked
// one, the checksum rejects a typing error before anything is looked up.
type APIKey struct {
	// ID names the key in records, lists and logs.
	ID string

	secret string
}

const (
	// APIKeyPrefix begins the text of every key that we make.
	APIKeyPrefix = "dvk_"

	keyIDBytes     = 8
	keySecretBytes = 32
	// keyIDEnd, keySecretEnd and keyTextLen are offsets in the text.
	keyIDEnd     = len(APIKeyPrefix) + 2*keyIDBytes
	keySecretEnd = keyIDEnd + 1 + 2*keySecretBytes
	keyTextLen   = keySecretEnd + 1 + 2*crc32.Size
)

// NewAPIKey makes a key with 256 random bits.
func NewAPIKey() (APIKey, error) {
	raw := make([]byte, keyIDBytes+keySecretBytes)
	if _, err := rand.Read(raw); err != nil {
		return APIKey{}, fmt.Errorf("make an API key: %w", err)
	}
	return APIKey{ID: hex.EncodeToString(raw[:keyIDBytes]), secret: hex.EncodeToString(raw[keyIDBytes:])}, nil
}

// ParseAPIKey reads a key's text form. Its error (InvalidArgument,
// API_KEY_MALFORMED) never repeats the text.
func ParseAPIKey(text string) (APIKey, error) {
	// Every call with a key comes by here: no regular expression, no garbage.
	if len(text) != keyTextLen || text[keyIDEnd] != '_' || text[keySecretEnd] != '_' || !strings.HasPrefix(text, APIKeyPrefix) {
		return APIKey{}, malformedKey("this is not an API key; expected dvk_<id>_<secret>_<checksum>, whole and unchanged")
	}
	k := APIKey{ID: text[len(APIKeyPrefix):keyIDEnd], secret: text[keyIDEnd+1 : keySecretEnd]}
	if !lowerHex(k.ID) || !lowerHex(k.secret) || !lowerHex(text[keySecretEnd+1:]) {
		return APIKey{}, malformedKey("an API key's id, secret and checksum are in lower-case hex")
	}
	if sum := checksumOf(text[:keySecretEnd]); string(sum[:]) != text[keySecretEnd+1:] {
		return APIKey{}, malformedKey("the API key's checksum is wrong; copy it again, whole")
	}
	return k, nil
}

// Text returns the whole key. It is for the one who asked for it, once.
func (k APIKey) Text() string {
	body := APIKeyPrefix + k.ID + "_" + k.secret
	sum := checksumOf(body)
	return body + "_" + string(sum[:])
}

// String names the key without its secret.
func (k APIKey) String() string { return "API key " + k.ID }

// GoString names the key without its secret.
func (k APIKey) GoString() string { return k.String() }

// Hash is what is stored of the key: the SHA-256 of its whole text, in hex. The
// secret is random, so that a slow hash would add nothing.
func (k APIKey) Hash() string {
	sum := sha256.Sum256([]byte(k.Text()))
	return hex.EncodeToString(sum[:])
}

func malformedKey(why string) error {
	return errdefs.New(errdefs.InvalidArgument, "API_KEY_MALFORMED", "key: %s", why).With("field", "key")
}

// checksumOf is the CRC-32 (IEEE) of a key's text before its checksum, in hex.
func checksumOf(body string) (sum [2 * crc32.Size]byte) {
	var buf [keySecretEnd]byte // spares a copy on the heap
	value := crc32.ChecksumIEEE(append(buf[:0], body...))
	hex.Encode(sum[:], []byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)})
	return sum
}

func lowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
