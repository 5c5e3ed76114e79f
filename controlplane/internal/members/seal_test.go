package members

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"testing"
)

func TestSeal(t *testing.T) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("the keys of the house")
	sealed, err := sealTo(key.PublicKey().Bytes(), secret)
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := openSealed(key, sealed); err != nil || !bytes.Equal(opened, secret) {
		t.Errorf("opened %q, %v", opened, err)
	}
	if _, err := openSealed(other, sealed); err == nil {
		t.Error("another key opens it")
	}
	for i := range sealed {
		spoiled := bytes.Clone(sealed)
		spoiled[i] ^= 1
		if opened, err := openSealed(key, spoiled); err == nil {
			t.Fatalf("opened with byte %d changed: %q", i, opened)
		}
		if _, err := openSealed(key, sealed[:i]); err == nil {
			t.Fatalf("opened with %d bytes", i)
		}
	}
	if _, err := sealTo([]byte("short"), secret); err == nil {
		t.Error("sealed to nonsense")
	}
}
