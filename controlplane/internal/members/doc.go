// Package members is about replicas: what one keeps in its data directory, how
// the first is made (Init), how another joins (Join asks, Door answers), how
// it becomes a voter of etcd (Promoter), and how its own certificates stay
// fresh (Open).
//
// It promises that the CA's keys rest on disk sealed only, travel sealed to the
// joiner's key inside TLS, and are given to one joiner for each token; and that
// joining can be repeated after any failure with the same token.
package members
