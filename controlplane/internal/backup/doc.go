// Package backup is the form of a backup on disk: one file, a tar with etcd's
// snapshot (etcd.db) and what it is a snapshot of (manifest.json), and beside it,
// to be kept apart from it, the recovery key, without which the CAs' keys in the
// manifest cannot be opened.
//
// It promises that a file which has its name is whole: it is written under
// another name, brought to the disk and read again before it gets its own; and
// that nothing is overwritten. What a backup means, and how a cluster is restored
// from one, is left to others.
package backup
