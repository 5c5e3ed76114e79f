// Package diskcopy copies files and block devices from one host to another over
// a connection that it is given, while nobody uses them. What it copies is
//
//   - sparse: holes and blocks of zeros are neither sent nor written;
//   - checked: each chunk by its hash when it comes, and the whole once it is on
//     the target's disk;
//   - resumed after a cut, whoever died: what the target already has is compared
//     by its hashes and not sent again.
//
// A file has its name only when all of it is there: it grows under another name
// beside it, is synced, and then linked to its own, which must be free. The other
// name stays until Keep or Discard, and proves after a crash whose the file is. A
// block device is written in place.
//
//	source                                target
//	hello: name, size                  →
//	                                   ←  welcome, or why not
//	                                   ←  hashes of what is there, in order
//	chunks that differ, holes          →
//	sum of all                         →
//	                                   ←  the same sum, once all is on disk
//	bye                                →
//
// Who may connect is for the caller's connection to see to; the target takes
// what it is sent for a stranger's all the same. Owners and modes are left to the
// caller.
package diskcopy
