// Package store is the control plane's way to etcd: the key space and its
// codecs, fenced transactions (Store), the watch that keeps the snapshot of
// package cluster (View), and the embedded server or the connection to an
// outside cluster.
//
// It promises that a Change is applied whole or not at all, and only while its
// fence and its conditions hold; that a snapshot is true at one revision and
// that revisions only grow. It leaves to others what records mean, and when to
// try again: an error that is Unavailable may have been applied.
package store
