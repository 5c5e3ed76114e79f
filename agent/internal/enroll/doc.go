// Package enroll makes this host a node: it exchanges a join token for the
// agent's certificate, keeps what came of it in the agent's data directory, and
// renews the certificate for as long as the agent runs.
//
// It promises that no server is trusted on first use (the token carries the
// CA's fingerprint), that a try after a lost answer uses the same key, and that
// a renewal touches no connection. What runs with the certificate is left to
// others.
package enroll
