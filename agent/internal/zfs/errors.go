package zfs

// The codes of errors of this package. Their context names the dataset, snapshot
// or pool as "dataset"; their message is for people.
const (
	// CodeDatasetNotFound: no such dataset, snapshot, bookmark or pool (NotFound).
	CodeDatasetNotFound = "DATASET_NOT_FOUND"
	// CodeDatasetExists: there is one of that name (AlreadyExists).
	CodeDatasetExists = "DATASET_EXISTS"
	// CodeDatasetBusy: in use by somebody, or being received into (Unavailable).
	CodeDatasetBusy = "DATASET_BUSY"
	// CodeDatasetHasChildren: snapshots or datasets below it are in the way (FailedPrecondition).
	CodeDatasetHasChildren = "DATASET_HAS_CHILDREN"
	// CodeDatasetChanged: what has the name is not what has the guid (Aborted).
	CodeDatasetChanged = "DATASET_CHANGED"
	// CodeSnapshotExists: there is a snapshot or a bookmark of that name (AlreadyExists).
	CodeSnapshotExists = "SNAPSHOT_EXISTS"
	// CodeSnapshotHeld: a hold keeps it (FailedPrecondition).
	CodeSnapshotHeld = "SNAPSHOT_HELD"
	// CodeSnapshotHasClones: a clone keeps it (FailedPrecondition).
	CodeSnapshotHasClones = "SNAPSHOT_HAS_CLONES"
	// CodeNoSpace: the pool is full (ResourceExhausted).
	CodeNoSpace = "NO_SPACE"
	// CodeQuota: a quota of the dataset, or of one above it, is reached (ResourceExhausted).
	CodeQuota = "QUOTA"
	// CodePoolSuspended: the pool does no more I/O until somebody repairs it (Unavailable).
	CodePoolSuspended = "POOL_SUSPENDED"
	// CodeStreamBroken: a stream ended too early or is damaged (Unavailable where what
	// arrived can be resumed).
	CodeStreamBroken = "STREAM_BROKEN"
	// CodeTokenDead: a resume token leads to nothing that can be sent (FailedPrecondition).
	CodeTokenDead = "TOKEN_DEAD"
	// CodeDestinationModified: the target has changed since the snapshot that the stream
	// begins at, or has not got it (FailedPrecondition).
	CodeDestinationModified = "DESTINATION_MODIFIED"
	// CodeKeyNotLoaded: an encrypted dataset's key is not there (FailedPrecondition).
	CodeKeyNotLoaded = "KEY_NOT_LOADED"
	// CodeNotPermitted: this process may not do it (PermissionDenied).
	CodeNotPermitted = "NOT_PERMITTED"
	// CodeUnsupported: this version of ZFS, or this pool, cannot do it (Unimplemented).
	CodeUnsupported = "ZFS_UNSUPPORTED"
	// CodeZFS: anything else that zfs refused (FailedPrecondition).
	CodeZFS = "ZFS_ERROR"
)
