// Package image does the tasks that change images of RBD: the kinds rbd-snapshot,
// rbd-snapshot-remove, rbd-clone, rbd-flatten, rbd-image-remove, rbd-fence and
// rbd-unfence. What a task is told may be done is done once, however often the
// agent or Ceph dies in between: a snapshot and a clone say which operation made
// them, removals are of ids, and where Ceph has not said what came of something
// it is looked at again before anything else. A cluster that is dead is waited
// for, for a while; what has to be done, and where, is the leader's to decide.
package image
