// Package drain is the leader's controller of operations that consist of many
// moves: "evacuate" empties a node, "restore" brings back what evacuations of a
// node moved away, "rebalance" carries out a plan of moves. Each move is an
// operation of kind "migrate" of its own, which package migrate advances; this
// one begins them, at most once each, and keeps account of them in the record
// of their parent.
//
// It advances an operation by one fenced transaction at a time, decided from the
// snapshot, the clock and what the planner says, and nothing else: a new leader
// goes on where the records stand. A move and the note of it in the parent's
// record are written together, so that none is begun twice and none is lost.
//
// A VM that is shut off is moved too where it can be, and named where it cannot;
// it keeps no host from being rebooted.
package drain
