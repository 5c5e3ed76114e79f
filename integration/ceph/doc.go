// Package ceph starts real Ceph clusters for tests, benchmarks and the lab: one monitor and some OSDs, with cephx, in a second,
// on the loopback or wherever a Place puts them. Its daemons can be stopped, killed and paused. Nothing of it outlives its owner.
//
// It runs Ceph's own programs only. What it promises of time is little: its monitor does not wait before it proposes, as a real
// one does for up to a second, so nothing absolute can be said from it of how long a snapshot takes.
package ceph
