package members

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

// sealInfo binds a sealed message to its purpose.
const sealInfo = "debvisor replica join keys v1"

// sealTo encrypts a secret to an X25519 public key: an ephemeral public key,
// the nonce, AES-256-GCM under HKDF-SHA-256 of the shared secret. It is for the
// way only: it hides the CA's keys from whatever may record a call inside TLS.
func sealTo(public, secret []byte) ([]byte, error) {
	peer, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("read the seal key: %w", err)
	}
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a seal key: %w", err)
	}
	aead, err := sealCipher(own, peer, own.PublicKey().Bytes(), public)
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

// openSealed decrypts what sealTo made for the key's public half.
func openSealed(key *ecdh.PrivateKey, sealed []byte) ([]byte, error) {
	const keySize = 32
	if len(sealed) < keySize {
		return nil, errors.New("open the sealed keys: too short")
	}
	peer, err := ecdh.X25519().NewPublicKey(sealed[:keySize])
	if err != nil {
		return nil, fmt.Errorf("open the sealed keys: %w", err)
	}
	aead, err := sealCipher(key, peer, sealed[:keySize], key.PublicKey().Bytes())
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

func sealCipher(own *ecdh.PrivateKey, peer *ecdh.PublicKey, sender, receiver []byte) (cipher.AEAD, error) {
	shared, err := own.ECDH(peer)
	if err != nil {
		return nil, fmt.Errorf("agree on a key: %w", err)
	}
	salt := append(append([]byte{}, sender...), receiver...)
	key, err := hkdf.Key(sha256.New, shared, salt, sealInfo, 32)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("use the key: %w", err)
	}
	return cipher.NewGCM(block)
}
