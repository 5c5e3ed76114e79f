// Package dispatch holds the agents' sessions. Every replica serves them; one
// that does not lead names the leader. The leader sends each node its open
// tasks, relays what the two sides of a migration cannot tell each other, and
// writes what agents report back into the tasks' records. It also puts
// questions to agents, which change nothing.
//
// It promises that nothing is sent that was not first written by a fenced
// transaction, and nothing once the lease may have run out; that a node has
// one session at most; that an agent speaks for its own node only; that a task
// which another journal may have begun is only observed; and that an end is
// acknowledged once it is in etcd. What tasks there are is left to controllers,
// liveness and placement to inventory.
package dispatch
