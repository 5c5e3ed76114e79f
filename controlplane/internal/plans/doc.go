// Package plans computes dry runs: whether and where a VM can move, how a node
// is emptied, how the load of nodes is evened out. Any replica writes down what
// is asked (Desk); the leader computes it (Controller), since it alone can ask
// agents what only they know; the answer is in every replica's snapshot.
//
// It promises that what is written is fenced, so that a leader which was
// replaced writes nothing; that a plan is computed by whoever leads, also when
// leaders change in between; that records stay far below what etcd takes, with
// a word about what was left out; and that plans end after KeepFor. Whether a
// plan still holds is told by Changes. Carrying it out is left to operations.
package plans
