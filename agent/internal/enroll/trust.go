package enroll

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Trust keeps the CAs that the agent trusts, and the one that its certificate is
// of, as the leader says. It is safe for concurrent use.
type Trust struct {
	renewer *Renewer
	log     hclog.Logger
	bell    chan struct{} // there may be a renewal to make
	changed chan struct{}

	mu sync.Mutex
	// signing is the CA that the certificate is to be of, by its fingerprint; "":
	// any.
	signing string
	// told is what Tell last said.
	told *agentv1.Trust
	// missed is what could not be taken over yet, for the disk's sake; nil: nothing.
	missed *agentv1.TrustBundle
}

// NewTrust makes one; Run must run for as long as it is told anything.
func NewTrust(r *Renewer, log hclog.Logger) *Trust {
	return &Trust{renewer: r, log: log, bell: make(chan struct{}, 1), changed: make(chan struct{}, 1)}
}

// Take takes over what the leader says. The CAs are on disk when it returns; a
// renewal that is called for follows. The CA of the agent's own certificate stays
// among them until there is another certificate. What the disk does not take is
// tried again: the leader tells it once.
func (t *Trust) Take(b *agentv1.TrustBundle) {
	if _, err := certs.ParseCertificates(b.GetCa()); err != nil {
		t.log.Error("the CAs that the leader tells are none", "error", err)
		return
	}
	err := t.renewer.trust(b.GetCa())
	t.mu.Lock()
	if t.missed = nil; err != nil {
		t.missed = b
	} else {
		t.signing = b.GetSigningCa()
	}
	t.mu.Unlock()
	if err != nil {
		t.log.Error("the CAs that the leader tells are taken over later", "error", err)
		return
	}
	ring(t.bell)
}

// again takes over what could not be before.
func (t *Trust) again() {
	t.mu.Lock()
	missed := t.missed
	t.mu.Unlock()
	if missed != nil {
		t.Take(missed)
	}
}

// Tell is what the agent trusts and shows now.
func (t *Trust) Tell() *agentv1.Trust {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.told = t.now()
	return t.told
}

func (t *Trust) now() *agentv1.Trust {
	r := t.renewer.Reloader
	leaf := r.Leaf()
	now := &agentv1.Trust{Cas: certs.Fingerprints(r.CAs()), Serial: certs.Serial(leaf), ExpiresAt: leaf.NotAfter.Unix()}
	if ca := r.Issuer(); ca != nil {
		now.Issuer = certs.Fingerprint(ca)
	}
	return now
}

// Changed is sent to when Tell has something else to say.
func (t *Trust) Changed() <-chan struct{} { return t.changed }

// lookEvery is how often the files are looked at for what others have changed;
// hurry is within what time a renewal that the leader calls for begins, so that
// not all agents come at once.
const (
	lookEvery = 10 * time.Second
	hurry     = 2 * time.Second
)

// Run renews the certificate while it is of another CA than the leader says, and
// notes what has changed, until ctx ends; it then returns nil.
func (t *Trust) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		t.again()
		t.note()
		if t.elsewhere() && pause(ctx, rand.N(hurry)) && t.elsewhere() {
			if err := t.renewer.Renew(ctx); err != nil && ctx.Err() == nil {
				t.log.Warn("the certificate is not yet of the CA that signs now", "error", err)
				if errdefs.Is(err, errdefs.Unauthenticated) {
					pause(ctx, lookEvery) // it will hardly be said otherwise
				}
			}
			ring(t.bell)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.bell:
		case <-tick.C:
		}
	}
}

// elsewhere tells whether the certificate is of another CA than it is to be.
func (t *Trust) elsewhere() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.signing != "" && t.now().GetIssuer() != t.signing
}

// note rings where what was told is true no more.
func (t *Trust) note() {
	t.mu.Lock()
	now := t.now()
	news := t.told != nil && (!slices.Equal(t.told.GetCas(), now.GetCas()) || t.told.GetSerial() != now.GetSerial() || t.told.GetIssuer() != now.GetIssuer())
	t.mu.Unlock()
	if news {
		ring(t.changed)
	}
}

// trust puts CAs in place, and keeps that of the own certificate besides.
func (r *Renewer) trust(bundle []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	list, err := certs.ParseCertificates(bundle)
	if err != nil {
		return err
	}
	if own := r.Reloader.Issuer(); own != nil && !slices.ContainsFunc(list, own.Equal) {
		bundle = slices.Concat(bundle, certs.EncodeCertificates(own))
	}
	path := r.Home.Files().CA
	was, err := os.ReadFile(path)
	if err != nil || bytes.Equal(was, bundle) {
		return err
	}
	if err := certs.WriteFile(path, bundle, certs.PublicMode); err != nil {
		return err
	}
	if err := r.Reloader.Reload(); err != nil {
		return errors.Join(err, certs.WriteFile(path, was, certs.PublicMode))
	}
	r.Log.Info("the CAs to trust have changed", "trusted", certs.Fingerprints(r.Reloader.CAs()))
	return nil
}

func ring(bell chan<- struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// pause waits; false when the context ends before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
