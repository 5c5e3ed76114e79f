// Package storage is the leader's controller of the operations on snapshots
// (snapshot.create, snapshot.delete, snapshot.prune) and of replication
// (replication.run, replication.delete), of clones of RBD images (image.clone,
// image.flatten, image.delete), and of how jobs stand: their cursors,
// what they have come to and whether their RPO is kept.
//
// It promises that every step is one fenced transaction on the ground of the
// records that it was judged by; that an operation's end frees what it held in
// the same transaction; that what people cancel ends only when no agent is at
// work for it any more; and that the death of a daemon or the absence of a node
// fails nothing, while what ZFS refuses does, with its code. What has to be asked
// of agents is asked aside and kept in memory only: whoever leads next asks anew.
//
// What is done in a Ceph cluster any node does that sees it: the one where a VM has
// the image, if there is one. A clone that has become deep is flattened by an
// operation that begins with the end of its own.
//
// Which snapshots go is package retention's to decide, what is sent package
// repldiff's. How snapshots are taken, destroyed and sent, and that every hold and
// bookmark is in its place whenever somebody dies, is the agents'
// (agent/internal/replication, agent/internal/image).
package storage
