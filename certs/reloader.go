package certs

import (
	"context"
	"crypto/x509"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"
)

// Reloader makes TLS configurations from files and keeps them current: every
// handshake uses what the files held at the last load. Connections that stand
// are not touched by a reload. It is safe for concurrent use.
type Reloader struct {
	files   Files
	log     hclog.Logger
	mu      sync.Mutex // one load at a time, so that an older one never wins
	current atomic.Pointer[material]
	// refusals paces the log of refused connections; unlogged counts the rest.
	refusals *rate.Limiter
	unlogged atomic.Int64
}

// NewReloader loads and checks the files. Its error is one line fit to end a
// start with: an expired certificate, a key that does not match, a file that
// is missing or cannot be read, a certificate of another CA.
func NewReloader(files Files, log hclog.Logger) (*Reloader, error) {
	r := &Reloader{files: files, log: log, refusals: rate.NewLimiter(refusalsPerSecond, refusalBurst)}
	if err := r.Reload(); err != nil {
		return nil, err
	}
	return r, nil
}

// Reload loads the files now. When it fails, what was loaded before stays in
// use.
func (r *Reloader) Reload() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, err := r.files.load(time.Now())
	if err != nil {
		return err
	}
	r.current.Store(m)
	return nil
}

// Run reloads whenever the files have changed, looking every interval, until
// the context ends; it then returns nil. A load that fails is logged, once for
// each state of the files, and changes nothing.
func (r *Reloader) Run(ctx context.Context, interval time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	seen := r.current.Load().version
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		version := r.files.version()
		if version == seen || version == r.current.Load().version {
			continue
		}
		seen = version
		if err := r.Reload(); err != nil {
			r.log.Error("certificate files changed but cannot be used, the old ones stay in use", "error", err)
			continue
		}
		leaf := r.Leaf()
		r.log.Info("certificate reloaded", "subject", leaf.Subject.CommonName, "serial", Serial(leaf), "not_after", stamp(leaf.NotAfter))
	}
}

// Leaf returns the certificate in use. It must not be changed.
func (r *Reloader) Leaf() *x509.Certificate { return r.current.Load().own.Leaf }

// CAs returns the CAs that are trusted. They must not be changed.
func (r *Reloader) CAs() []*x509.Certificate { return r.current.Load().cas }

// Issuer returns the trusted CA that signed the certificate in use; nil: it
// comes from one that is trusted by way of others only.
func (r *Reloader) Issuer() *x509.Certificate { return r.current.Load().issuer }
