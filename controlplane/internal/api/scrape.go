package api

import (
	"crypto/x509"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// Scrape stands before a page that is read over HTTPS by machines, every few
// seconds: only a principal that comes with a certificate and has a permission
// gets to it. It counts against that principal's rate. As with health, nothing
// but refusals is audited, and a replica that has lost sight of etcd still
// answers: that is when the page is needed.
func (c *Chain) Scrape(permission string, page http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k := &call{Context: r.Context(), began: time.Now(), method: "GET " + r.URL.Path, peer: remote(r), kind: audit.Result}
		k.trace = rpc.PickTrace(r.Header.Values)
		if err := c.mayScrape(k, leafOf(r), permission); err != nil {
			c.refuseScrape(w, k, err)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		page.ServeHTTP(w, r)
	})
}

// mayScrape goes the way of admit, for a page in place of a method.
func (c *Chain) mayScrape(k *call, leaf *x509.Certificate, permission string) error {
	snapshot := c.View.Current()
	var err error
	k.caller, err = c.Authn.ByCertificate(leaf)
	if err == nil {
		err = c.Authn.Check(k.caller, snapshot, k.began)
	}
	c.meterIdentity(k, err)
	if err != nil {
		k.kind = audit.AuthenticationFailure
		if over := c.Strangers.failed(k.peer, k.began); over != nil {
			c.Meter.Limited(false)
			k.kind, k.summed = audit.RateLimitExceeded, &c.flood
			return over
		}
		return err
	}
	k.grant = c.Authz.Grant(snapshot, k.caller)
	denied := c.Authz.Require(snapshot, k.caller, permission)
	c.Meter.Authorized(refusalCode(denied))
	if denied != nil {
		k.kind = audit.PermissionDenied
	}
	if err := c.count(k, denied != nil); err != nil {
		k.kind, k.summed = audit.RateLimitExceeded, &c.refusals
		c.Meter.Limited(true)
		return err
	}
	return denied
}

func (c *Chain) refuseScrape(w http.ResponseWriter, k *call, err error) {
	if k.summed != nil {
		k.summed.tell(k, err)
	} else {
		e := k.result(k.kind, nil, err)
		c.Audit.Add(&e)
	}
	refusal := errdefs.Of(err)
	status := http.StatusForbidden
	switch refusal.Kind {
	case errdefs.Unauthenticated:
		status = http.StatusUnauthorized
	case errdefs.ResourceExhausted:
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", strconv.Itoa(int(refusal.RetryAfter/time.Second)+1))
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	http.Error(w, refusal.Code+": "+refusal.Message, status)
}

// leafOf is the certificate that the client showed and the handshake verified.
func leafOf(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	return r.TLS.PeerCertificates[0]
}

func remote(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
