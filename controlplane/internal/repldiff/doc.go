// Package repldiff decides what a run of a replication job has to send: what
// both ends have in, the steps or a typed refusal out. It is pure: no I/O and no
// clock, so that a dry run and the run that follows decide alike.
//
// It promises that guids decide and never names; that an increment begins only at
// the snapshot that is the target's newest when the step is taken, as zfs receive
// needs it; that a resume token is used only where it stands for the very step
// that would be taken; that nothing is renamed or destroyed that is not this
// job's copy; and that nothing is destroyed without the caller having confirmed
// by the plan's id what would be lost.
//
// That its inputs are what both ends said at the same time is the caller's to see
// to, and so is that nothing else changes the target meanwhile: the agents look
// again before they touch anything.
package repldiff
