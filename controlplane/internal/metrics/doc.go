// Package metrics says in Prometheus's words how a replica and its cluster are.
// What others count on the way of calls and requests is counted in memory made
// beforehand; the rest is read from memory when somebody scrapes, and etcd is
// asked nothing for it.
//
// What the records in etcd say is the same on every replica, so that one who
// adds up takes the maximum over replicas; what only the leader knows, it alone
// tells. No label has a value that a caller can choose: methods, kinds, states
// and codes are words of our code, and nodes' ids are the operator's.
package metrics
