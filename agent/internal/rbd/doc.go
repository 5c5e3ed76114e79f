// Package rbd is the only one that speaks to Ceph. librados waits in C, where
// nothing can interrupt it: so the agent never calls it, and a child process of
// the same binary (debvisor-agent ceph) does, which is killed when a call does not
// come back. A dead cluster costs the agent the waiting of its callers, and a
// bounded number of threads of a child's.
//
// What is promised: every call returns by the end of its context and by its own
// limit. CEPH_DOWN means that nothing was changed; CEPH_UNKNOWN that a change may
// have been made or not, and once the cluster answers again what is seen is what
// came of it: a child that was killed is blocklisted before its successor serves,
// so that nothing of it arrives late. Every change may be asked for again, by the
// same operation, wherever the first attempt ended.
//
// A host without Ceph runs the same package; every call says NO_CEPH.
package rbd
