// Package enroll makes nodes members of the cluster: join tokens, the
// certificate that a token and a CSR are exchanged for, and its renewal.
//
// It promises that a token enrols one node with one key: consuming it is one
// transaction, bound to the CSR's public key, so that the same key gets its
// certificate again when an answer was lost, and another key never does. What
// it refuses it logs. Verifying certificates is left to package certs, replicas
// that join to package members, which consumes its tokens here.
package enroll
