// Package zfs is the only one that runs the commands zfs and zpool: what pools,
// datasets, snapshots, bookmarks and holds there are, and the steps of which
// snapshots, retention and replication are made.
//
// It promises that every name is checked before a command runs; that commands get
// arguments only, never a shell, and end with their context, whole process groups
// of them; that their output is bounded or streamed; and that what zfs refuses
// comes back as one of errdefs' kinds with a stable code and the dataset named.
//
// It leaves to others which snapshots to take, keep or send, and who may ask. It
// holds no state: what is true is in the pool.
package zfs
