package authn

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// keyFileLook is how often the file of keys is read anew.
	keyFileLook = 2 * time.Second
	// maxKeyFile is the most that it may hold, bytes.
	maxKeyFile = 256 << 10
)

// keyFile has an issuer's keys from a file. Several keys in it serve a change
// of keys: tokens of all of them are accepted.
type keyFile struct {
	path       string
	algorithms []string
	log        hclog.Logger
	mu         sync.Mutex // one look at a time
	content    []byte     // of the last good one
	current    atomic.Pointer[keySet]
}

func openKeyFile(path string, algorithms []string, log hclog.Logger) (*keyFile, error) {
	f := &keyFile{path: path, algorithms: algorithms, log: log}
	if err := f.Reload(); err != nil {
		return nil, err
	}
	return f, nil
}

// Reload takes the file's content now. What cannot be taken changes nothing.
func (f *keyFile) Reload() error {
	if _, err := f.look(); err != nil {
		return fmt.Errorf("--jwt-key %s: %w", f.path, err)
	}
	return nil
}

// look reads the file and tells whether it says something else than before.
func (f *keyFile) look() (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	content, err := readSmall(f.path, maxKeyFile)
	if err != nil || f.content != nil && bytes.Equal(content, f.content) {
		return false, err
	}
	return true, f.take(content)
}

// Current are the keys of the file's last good content.
func (f *keyFile) Current() *keySet { return f.current.Load() }

// Unknown has no news: the file is looked at all the time.
func (f *keyFile) Unknown(context.Context, time.Time) {}

// Run takes the file's content whenever it has changed. What cannot be taken
// changes nothing and is logged once.
func (f *keyFile) Run(ctx context.Context) error {
	tick := time.NewTicker(keyFileLook)
	defer tick.Stop()
	for failed := ""; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		changed, err := f.look()
		switch {
		case err == nil && !changed:
		case err == nil:
			f.log.Info("the keys of tokens' issuer are loaded anew", "file", f.path, "keys", len(f.Current().keys))
			failed = ""
		case err.Error() != failed:
			f.log.Error("the keys of tokens' issuer changed but cannot be used, the old ones stay in use", "file", f.path, "error", err)
			failed = err.Error()
		}
	}
}

func (f *keyFile) take(content []byte) error {
	keys, err := parseKeys(content, f.algorithms)
	if err != nil {
		return err
	}
	next := newKeySet(keys, false)
	f.content = content
	if was := f.current.Load(); was == nil || !was.same(next) {
		f.current.Store(next)
	}
	return nil
}

// parseKeys reads public keys and certificates in PEM, and nothing else.
func parseKeys(content []byte, algorithms []string) ([]verifyKey, error) {
	var keys []verifyKey
	for {
		content = bytes.TrimSpace(content)
		if len(content) == 0 {
			break
		}
		block, rest := pem.Decode(content)
		if block == nil {
			return nil, errors.New("not PEM, or something besides PEM is in it")
		}
		key, err := parseKey(block, algorithms)
		if err != nil {
			return nil, err
		}
		keys, content = append(keys, key), rest
	}
	if len(keys) == 0 || len(keys) > maxKeys {
		return nil, fmt.Errorf("%d keys; expected 1 to %d", len(keys), maxKeys)
	}
	return keys, nil
}

func parseKey(block *pem.Block, algorithms []string) (verifyKey, error) {
	switch block.Type {
	case "PUBLIC KEY":
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return verifyKey{}, fmt.Errorf("a broken public key: %w", err)
		}
		return newVerifyKey("", public, algorithms)
	case "RSA PUBLIC KEY":
		public, err := x509.ParsePKCS1PublicKey(block.Bytes)
		if err != nil {
			return verifyKey{}, fmt.Errorf("a broken RSA public key: %w", err)
		}
		return newVerifyKey("", public, algorithms)
	case "CERTIFICATE":
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return verifyKey{}, fmt.Errorf("a broken certificate: %w", err)
		}
		return newVerifyKey("", cert.PublicKey, algorithms)
	}
	return verifyKey{}, fmt.Errorf("a block %q; expected public keys or certificates", block.Type)
}

// readSmall reads a file that holds no more than some bytes.
func readSmall(path string, most int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	content, err := io.ReadAll(io.LimitReader(file, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > most {
		return nil, fmt.Errorf("more than %d bytes", most)
	}
	return content, nil
}
