package members

import (
	"crypto/ecdh"

	"github.com/debvisor/debvisor/controlplane/internal/pki"
)

// sealInfo binds a sealed message to its purpose.
const sealInfo = "debvisor replica join keys v1"

// sealTo encrypts a secret to an X25519 public key. It is for the way only: it
// hides the CA's keys from whatever may record a call inside TLS.
func sealTo(public, secret []byte) ([]byte, error) { return pki.SealTo(public, secret, sealInfo) }

// openSealed decrypts what sealTo made for the key's public half.
func openSealed(key *ecdh.PrivateKey, sealed []byte) ([]byte, error) {
	return pki.OpenSealed(key, sealed, sealInfo)
}
