package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
)

// SelfClient is the configuration for asking a listener of this very process
// that serves this Reloader's certificate, whatever its address: nothing else
// is accepted. It shows no certificate.
func (r *Reloader) SelfClient() *tls.Config {
	cfg := baseConfig()
	// Whose certificate it is, not which host it names, tells that it is us.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("the server sent no certificate")
		}
		if leaf := state.PeerCertificates[0]; !leaf.Equal(r.Leaf()) {
			return fmt.Errorf("another process listens there: it shows %s", describe(state))
		}
		return nil
	}
	return cfg
}
