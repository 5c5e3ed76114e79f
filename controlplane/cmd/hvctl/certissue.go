package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

func certIssue(a *app) *cobra.Command {
	life := span(90 * 24 * time.Hour)
	var out string
	var replace bool
	c := &cobra.Command{
		Use: "issue PRINCIPAL", Short: "Make a principal's certificate; its key is made here and leaves for nowhere", Args: cobra.ExactArgs(1),
		Long: "Make a principal's certificate: PRINCIPAL.pem, PRINCIPAL-key.pem and ca.pem in the directory. The key is\n" +
			"made here and is not sent anywhere. With --replace files that are there are replaced, as before the\n" +
			"present certificate ends or when the CA is exchanged.",
		Example:           "  hvctl cert issue panel --out /etc/panel/pki\n  hvctl cert issue operator --out ~/.config/hvctl/pki --replace",
		ValidArgsFunction: a.completePrincipals,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.issueCert(cmd.Context(), args[0], out, life.seconds(), replace)
		},
	}
	c.Flags().Var(&life, "ttl", "how long it can be used, at most 90d")
	c.Flags().StringVar(&out, "out", ".", "the directory for the files")
	c.Flags().BoolVar(&replace, "replace", false, "replace files that are there")
	complete(c, "ttl", cobra.NoFileCompletions)
	return c
}

func (a *app) issueCert(ctx context.Context, principal, dir string, seconds uint32, replace bool) error {
	certFile, keyFile := filepath.Join(dir, principal+".pem"), filepath.Join(dir, principal+"-key.pem")
	if filepath.Base(certFile) != principal+".pem" {
		return usage("%q is not accepted as a principal: it names no file", principal)
	}
	for _, path := range []string{certFile, keyFile} {
		if _, err := os.Stat(path); !replace && !errors.Is(err, fs.ErrNotExist) {
			return usage("%s is there already; give --replace, or another --out", path)
		}
	}
	keyPEM, csr, err := newKeyAndRequest(principal)
	if err != nil {
		return err
	}
	return a.ask(ctx, func(ctx context.Context, c *client) error {
		made, err := c.certificates.IssueCertificate(a.changing(ctx), &debvisorv1.CertificateRequest{Principal: principal, Csr: csr, TtlSeconds: seconds})
		if err != nil {
			return err
		}
		if err := writePair(certFile, keyFile, made.GetCertificate(), keyPEM); err != nil {
			return badConfig("writing the certificate: %v", err)
		}
		if err := writePrivate(filepath.Join(dir, "ca.pem"), made.GetCa()); err != nil {
			return badConfig("writing the CAs: %v", err)
		}
		return a.print(made, func() error {
			_, err := fmt.Fprintln(a.out, clean(certFile))
			a.hint("certificate %s of %s can be used until %s; its key is %s", made.GetInfo().GetSerial(), principal, stamp(made.GetInfo().GetExpiresAt()), keyFile)
			return err
		})
	})
}

// stagedKey is where a key is until its certificate is in place.
func stagedKey(keyFile string) string { return keyFile + ".next" }

// writePair replaces a certificate and its key. Two files cannot be replaced in
// one step: whoever is stopped in between has the new key beside the old one, where
// loadPair finds it.
func writePair(certFile, keyFile string, certPEM, keyPEM []byte) error {
	if err := writePrivate(stagedKey(keyFile), keyPEM); err != nil {
		return err
	}
	if err := writePrivate(certFile, certPEM); err != nil {
		return err
	}
	return os.Rename(stagedKey(keyFile), keyFile)
}

// loadPair reads a certificate with its key.
func loadPair(certFile, keyFile string) (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		if staged, err := tls.LoadX509KeyPair(certFile, stagedKey(keyFile)); err == nil {
			return staged, nil
		}
	}
	return pair, err
}

// newKeyAndRequest makes a P-256 key in PEM and a request for a certificate of it.
func newKeyAndRequest(principal string) (keyPEM, csr []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding a key: %w", err)
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: principal}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), csr, nil
}
