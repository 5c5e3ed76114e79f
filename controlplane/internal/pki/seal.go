package pki

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// SealTo encrypts a secret to an X25519 public key: an ephemeral public key, the
// nonce, AES-256-GCM under HKDF-SHA-256 of the shared secret. info binds it to
// its purpose: OpenSealed must be given the same.
func SealTo(public, secret []byte, info string) ([]byte, error) {
	peer, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("read the seal key: %w", err)
	}
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a seal key: %w", err)
	}
	aead, err := sealCipher(own, peer, own.PublicKey().Bytes(), public, info)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("make a nonce: %w", err)
	}
	head := append(own.PublicKey().Bytes(), nonce...)
	return aead.Seal(head, nonce, secret, nil), nil
}

// OpenSealed decrypts what SealTo made for the key's public half.
func OpenSealed(key *ecdh.PrivateKey, sealed []byte, info string) ([]byte, error) {
	const keySize = 32
	if len(sealed) < keySize {
		return nil, errors.New("open the sealed keys: too short")
	}
	peer, err := ecdh.X25519().NewPublicKey(sealed[:keySize])
	if err != nil {
		return nil, fmt.Errorf("open the sealed keys: %w", err)
	}
	aead, err := sealCipher(key, peer, sealed[:keySize], key.PublicKey().Bytes(), info)
	if err != nil {
		return nil, err
	}
	rest := sealed[keySize:]
	if len(rest) < aead.NonceSize() {
		return nil, errors.New("open the sealed keys: too short")
	}
	secret, err := aead.Open(nil, rest[:aead.NonceSize()], rest[aead.NonceSize():], nil)
	if err != nil {
		return nil, errors.New("open the sealed keys: they are sealed to another key, or damaged")
	}
	return secret, nil
}

func sealCipher(own *ecdh.PrivateKey, peer *ecdh.PublicKey, sender, receiver []byte, info string) (cipher.AEAD, error) {
	shared, err := own.ECDH(peer)
	if err != nil {
		return nil, fmt.Errorf("agree on a key: %w", err)
	}
	salt := append(append([]byte{}, sender...), receiver...)
	key, err := hkdf.Key(sha256.New, shared, salt, info, 32)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("use the key: %w", err)
	}
	return cipher.NewGCM(block)
}

// exchangeInfo binds keys in the CAs' record to their purpose.
const exchangeInfo = "debvisor CA exchange keys v1"

// slot is where a replica's sealed keys are in the CAs' record: another seal key
// of the same name has another.
func slot(replica string, public []byte) string {
	sum := sha256.Sum256(public)
	return replica + "/" + hex.EncodeToString(sum[:8])
}
