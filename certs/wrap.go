package certs

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

const (
	wrappedBlock = "DEBVISOR WRAPPED PRIVATE KEY"
	wrapKeySize  = 32
)

// WrapKey seals private keys at rest with AES-256-GCM. Its zero value is
// unusable; it comes from NewWrapKey or ReadWrapKey.
type WrapKey struct {
	aead cipher.AEAD
	text string
}

// NewWrapKey makes a random wrap key.
func NewWrapKey() (WrapKey, error) {
	raw := make([]byte, wrapKeySize)
	if _, err := rand.Read(raw); err != nil {
		return WrapKey{}, fmt.Errorf("make a wrap key: %w", err)
	}
	return newWrapKey(raw)
}

// ReadWrapKey reads a wrap key from a file as WriteNew leaves it: 32 bytes in
// base64. The file may be a systemd credential.
func ReadWrapKey(path string) (WrapKey, error) {
	data, err := readFile("wrap key", path)
	if err != nil {
		return WrapKey{}, err
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(raw) != wrapKeySize {
		return WrapKey{}, fmt.Errorf("wrap key %s does not hold 32 bytes in base64: restore it from a backup", path)
	}
	return newWrapKey(raw)
}

func newWrapKey(raw []byte) (WrapKey, error) {
	block, err := aes.NewCipher(raw)
	if err != nil {
		return WrapKey{}, fmt.Errorf("use the wrap key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return WrapKey{}, fmt.Errorf("use the wrap key: %w", err)
	}
	return WrapKey{aead: aead, text: base64.StdEncoding.EncodeToString(raw)}, nil
}

// WriteNew stores the wrap key in a file of mode 0600 that must not exist.
func (w WrapKey) WriteNew(path string) error {
	return WriteNewFile(path, []byte(w.text+"\n"), SecretMode)
}

// String hides the key from logs and errors.
func (WrapKey) String() string { return "wrap key" }

// GoString hides the key from %#v.
func (WrapKey) GoString() string { return "wrap key" }

// Seal encrypts a secret of a daemon's data directory; label must be given again
// to open it.
func (w WrapKey) Seal(secret []byte, label string) ([]byte, error) { return w.seal(secret, label) }

// Open decrypts what Seal made.
func (w WrapKey) Open(sealed []byte, label string) ([]byte, error) { return w.open(sealed, label) }

// seal encrypts secret; label must be given again to open it, so that one
// sealed key cannot be put in the place of another.
func (w WrapKey) seal(secret []byte, label string) ([]byte, error) {
	if w.aead == nil {
		return nil, errors.New("seal a key: no wrap key")
	}
	nonce := make([]byte, w.aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal a key: %w", err)
	}
	sealed := w.aead.Seal(nonce, nonce, secret, []byte(label))
	return pem.EncodeToMemory(&pem.Block{Type: wrappedBlock, Bytes: sealed}), nil
}

func (w WrapKey) open(data []byte, label string) ([]byte, error) {
	if w.aead == nil {
		return nil, errors.New("open a sealed key: no wrap key")
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != wrappedBlock || len(block.Bytes) < w.aead.NonceSize() {
		return nil, errors.New("it is not a key sealed by debvisor")
	}
	n := w.aead.NonceSize()
	secret, err := w.aead.Open(nil, block.Bytes[:n], block.Bytes[n:], []byte(label))
	if err != nil {
		return nil, errors.New("the wrap key does not open it (another wrap key, or a damaged file)")
	}
	return secret, nil
}

// readFile reads a file of the trust store; the error is one line that says
// which file, why, and what to do.
func readFile(what, path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		return data, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s %s is missing: create it with init, join or enroll, or name another file (%w)", what, path, fs.ErrNotExist)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%s %s cannot be read by uid %d: correct its owner or mode (%w)", what, path, os.Getuid(), fs.ErrPermission)
	default:
		return nil, fmt.Errorf("%s cannot be read: %w", what, err)
	}
}
