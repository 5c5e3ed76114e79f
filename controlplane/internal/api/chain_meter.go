package api

import (
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// Meter is told what becomes of calls. It is asked for each of them, so that it
// must be quick, and is for use by many goroutines. It hears nothing that a
// caller could choose, but for the names of methods.
type Meter interface {
	// Authenticated is told by what a caller is known, or would be, and the code
	// of the refusal; empty: it is believed.
	Authenticated(by Credential, refusal string)
	// Authorized is told the code of the refusal; empty: the call is allowed.
	Authorized(refusal string)
	// Limited is told that a call was refused since too many had come, from its
	// principal or from its address.
	Limited(principal bool)
	// StreamBegins is told of a stream; Ended hears of its end.
	StreamBegins(method string)
	// Ended is told how a call ended: failed with a kind, or not.
	Ended(method string, stream bool, failed bool, kind errdefs.Kind, took time.Duration)
}

// Credential is what a caller shows to be known by.
type Credential int

// The credentials. A Bearer is an API key or a JWT that is not accepted, so that
// nobody knows which.
const (
	NoCredential Credential = iota
	CertificateCredential
	KeyCredential
	TokenCredential
	BearerCredential
)

type unmetered struct{}

func (unmetered) Authenticated(Credential, string)                      {}
func (unmetered) Authorized(string)                                     {}
func (unmetered) Limited(bool)                                          {}
func (unmetered) StreamBegins(string)                                   {}
func (unmetered) Ended(string, bool, bool, errdefs.Kind, time.Duration) {}

// meterIdentity tells the meter whether the caller is believed. Who need not
// say who it is, and does not, has not failed to.
func (c *Chain) meterIdentity(k *call, refusal error) {
	switch {
	case refusal == nil:
		c.Meter.Authenticated(credentialOf(k.caller), "")
	case !k.rule.Open || k.caller != nil:
		by := credentialOf(k.caller)
		if by == NoCredential {
			by = shown(k)
		}
		c.Meter.Authenticated(by, refusalCode(refusal))
	}
}

func credentialOf(caller *authn.Caller) Credential {
	switch {
	case caller == nil:
		return NoCredential
	case caller.Kind == authn.APIKey:
		return KeyCredential
	case caller.Kind == authn.JWT:
		return TokenCredential
	}
	return CertificateCredential
}

// shown is what a caller that is not known has shown.
func shown(k *call) Credential {
	switch {
	case rpc.Certificate(k.Context) != nil:
		return CertificateCredential
	case metadataValue(k.Context, "authorization") != "":
		return BearerCredential
	}
	return NoCredential
}

// meter tells the meter how a call ended.
func (c *Chain) meter(k *call, err error) {
	if k.kind == audit.RateLimitExceeded {
		c.Meter.Limited(k.summed != &c.flood)
	}
	c.Meter.Ended(k.method, k.stream, err != nil, kindOf(err), time.Since(k.began))
}

// kindOf is the kind that an error leaves the server as.
func kindOf(err error) errdefs.Kind {
	if err == nil {
		return errdefs.Internal
	}
	return errdefs.Of(err).Kind
}

// refusalCode is the code of a refusal, a word of our own; empty: there is none.
func refusalCode(err error) string {
	if err == nil {
		return ""
	}
	return errdefs.Of(err).Code
}
