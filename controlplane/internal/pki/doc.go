// Package pki keeps account of the certificates that the cluster has issued, and
// holds the rules of exchanging its CA: how far an exchange is, who is not ready
// for its next phase, what each step changes. It turns a snapshot into one
// store.Change, or refuses; all I/O but randomness is left to others.
//
// It promises that a CA is trusted only when one that was trusted before has
// vouched for it, that the keys of CAs are in etcd sealed to single replicas
// only, and that who stops trusting a CA has been told of everybody who still
// needs it.
package pki
