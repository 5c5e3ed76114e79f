// Package recovery brings a cluster that was restored from a backup to its end,
// while its replica leads: operations that were open in the backup are ended once
// their nodes have said what became of their tasks, and when every node was heard,
// or is said to be powered off, the records are said to be those of what runs.
//
// It promises that nothing of such an operation is carried on: its tasks are only
// observed, and its end is a failure that says what was seen. That no VM is
// started meanwhile is kept by those who start VMs (cluster.Snapshot.Recovering),
// and that placements follow what runs by package inventory.
package recovery
