// Package relay puts questions to agents from any replica: the leader, which has
// the agents' sessions, asks them itself; every other replica asks the leader to.
//
// It promises that an answer comes whole or with an error; that parts are fetched
// no faster than they are taken, over the whole way; and that a question ends
// with its context, or after a while where it has no deadline.
//
// It leaves to others who may ask what, and what the answers mean. Questions
// change nothing, so that none is written down.
package relay
