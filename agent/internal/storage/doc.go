// Package storage knows what a host's disks lie on: its mounted file systems,
// which of them other nodes see too, and of each disk's file its size, its
// inode and the image it is an overlay of.
//
// It promises that a file system that hangs holds nobody up for longer than a
// moment, and costs one goroutine. It neither opens an image for writing nor
// believes what a guest could have written into one.
package storage
