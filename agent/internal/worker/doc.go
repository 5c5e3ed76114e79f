// Package worker runs an agent's tasks. Its journal (bbolt) makes it promise
// what the leader relies on: a task is on disk before it is acknowledged; one
// id is done at most once by one journal, however often and however late it is
// delivered; a leader older than the newest ever heard is refused; the newest
// placement that was ever told of a VM is remembered; an outcome
// is on disk before it is reported and is reported until a leader has it.
//
// What a task does is left to the kinds registered with it, and how reports
// travel to the session. A journal that cannot be written ends the agent: it
// could keep none of these promises.
package worker
