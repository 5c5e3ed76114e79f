// Package migrate is the leader's controller of operations of kind "migrate".
// It advances each by one fenced transaction at a time, decided from the
// records in the snapshot and nothing else: a new leader goes on where the
// records stand. What runs on the nodes is the agents' to say; who may let a
// copy run is theirs to settle (agent/internal/migration). It ends an operation
// only once both agents have ended their tasks.
package migrate
