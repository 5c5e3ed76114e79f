package access

import (
	"encoding/hex"
	"maps"
	"math/big"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// ListRevokedCertificates gives them by serial.
func (w World) ListRevokedCertificates() *debvisorv1.RevokedCertificateList {
	list := &debvisorv1.RevokedCertificateList{}
	for _, serial := range slices.Sorted(maps.Keys(w.Revoked)) {
		list.Certificates = append(list.Certificates, &debvisorv1.RevokedCertificate{Serial: serial, Reason: w.Revoked[serial].Value})
	}
	return list
}

// Serial gives a serial in the form of certs.Serial, whatever its case and its
// leading zeros are.
func Serial(text string) (string, error) {
	n, ok := new(big.Int).SetString(text, 16)
	if !ok || n.Sign() <= 0 || strings.Trim(text, "0123456789abcdefABCDEF") != "" {
		return "", errdefs.Field("serial", text, "a certificate's serial in hex, as openssl x509 -serial prints it")
	}
	return hex.EncodeToString(n.Bytes()), nil
}

// RevokeCertificate notes a certificate as revoked; serial is in Serial's form.
// One that is revoked already stays so, and gets the reason if one is given.
// The caller's own (FailedPrecondition; "": it came without one) is never
// revoked: the mistake of a typing error would cut off who could mend it.
func (w World) RevokeCertificate(serial, reason, own string) (store.Change, error) {
	if serial == own {
		return store.Change{}, errdefs.New(errdefs.FailedPrecondition, "OWN_CERTIFICATE",
			"%s is the certificate that this call was made with; revoke it as somebody else", serial).With("serial", serial)
	}
	was, revoked := w.Revoked[serial]
	if revoked && reason == "" {
		reason = was.Value
	}
	c := w.begin()
	key := store.RevokedKey(serial)
	c.Require = append(c.Require, store.Unchanged(key, was.ModRevision))
	c.Puts = append(c.Puts, store.PutString(key, reason))
	return *c, nil
}
