// Package certs is the cluster's trust: the certificate authority, the leaves
// it issues, and the TLS configurations made from them.
//
// It promises TLS 1.3 only, P-256 keys, private keys that reach the disk
// atomically and readable by their owner alone, and configurations that serve
// the current files without a restart. Every certificate that a configuration
// of this package accepted has been verified against the cluster's CA; who the
// certificate speaks for is decided by package identity.
//
// Revocation, join tokens and the calls that carry CSRs belong to others.
package certs
