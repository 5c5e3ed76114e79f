package zfs

import "time"

// The names of the user properties that DebVisor puts on its snapshots.
const (
	// PropertyOperation is the id of the operation that took the snapshot.
	PropertyOperation = "org.debvisor:operation"
	// PropertyLabel is what the caller named it.
	PropertyLabel = "org.debvisor:label"
	// PropertySet is the id of the atomic set that it belongs to.
	PropertySet = "org.debvisor:set"
	// PropertyJob is the replication job that it was taken for, or whose copy a dataset is.
	PropertyJob = "org.debvisor:job"
)

// Pool is a pool as zpool list tells it; sizes are bytes.
type Pool struct {
	Name string
	GUID uint64
	// Health is ONLINE, DEGRADED, FAULTED, OFFLINE, UNAVAIL, REMOVED or SUSPENDED.
	Health                         string
	Size, Allocated, Free, Freeing uint64
	// Fragmentation and Capacity are per cent; Fragmentation is 0 where unknown.
	Fragmentation, Capacity uint64
	ReadOnly                bool
}

// Dataset is a file system or a volume; sizes are bytes.
type Dataset struct {
	Name string
	// Volume tells a volume from a file system.
	Volume                          bool
	GUID, CreateTXG                 uint64
	Creation                        time.Time
	Used, Available, Referenced     uint64
	LogicalUsed, Written            uint64
	UsedBySnapshots, UsedByDataset  uint64
	Quota, RefQuota, RefReservation uint64
	VolumeSize, BlockSize           uint64
	Compression, Mountpoint, Origin string
	Mounted, ReadOnly               bool
	Encryption, EncryptionRoot      string
	// KeyLoaded tells whether an encrypted dataset's key is there.
	KeyLoaded bool
	// ResumeToken is what a receive that was cut off can be resumed with; empty: none was.
	ResumeToken string
	// Properties are the org.debvisor ones set on this dataset itself.
	Properties map[string]string
}

// Encrypted tells whether the dataset's content is encrypted by ZFS.
func (d Dataset) Encrypted() bool { return d.Encryption != "" && d.Encryption != "off" }

// Snapshot is a snapshot; sizes are bytes.
type Snapshot struct {
	Dataset, Name   string
	GUID, CreateTXG uint64
	Creation        time.Time
	// Used is what only this snapshot holds, Written what was written between the one
	// before and this.
	Used, Referenced, Written uint64
	// UserRefs is how many holds it has.
	UserRefs uint64
	// DeferDestroy: it goes when its last hold or clone does.
	DeferDestroy bool
	Clones       []string
	// Properties are the org.debvisor ones set on this snapshot itself.
	Properties map[string]string
}

// FullName is dataset@name.
func (s Snapshot) FullName() string { return s.Dataset + "@" + s.Name }

// Bookmark is what is left of a snapshot to send increments from.
type Bookmark struct {
	Dataset, Name string
	// GUID and CreateTXG are those of the snapshot that it was made of.
	GUID, CreateTXG uint64
	Creation        time.Time
}

// FullName is dataset#name.
func (b Bookmark) FullName() string { return b.Dataset + "#" + b.Name }

// Hold keeps a snapshot from being destroyed.
type Hold struct {
	Tag     string
	Created time.Time
}

// Ref is a snapshot that is meant and no other of its name.
type Ref struct {
	Dataset, Name string
	GUID          uint64
}

// FullName is dataset@name.
func (r Ref) FullName() string { return r.Dataset + "@" + r.Name }

// Property is a property's value and where it comes from.
type Property struct {
	Value string
	// Source is local, default, received, temporary, "inherited from DATASET", or - for
	// what nobody sets.
	Source string
}

// Capabilities is what the installed ZFS is and can do.
type Capabilities struct {
	// Userland and Kernel are versions such as 2.4.4-1.
	Userland, Kernel string
	// EncryptedSendUnsafe says why no encrypted dataset is to be sent by this version;
	// empty: it may.
	EncryptedSendUnsafe string
	// Programs: snapshots are destroyed by guid in one transaction.
	Programs bool
}

// SnapshotSpec is an atomic set of snapshots.
type SnapshotSpec struct {
	// Datasets are of one pool.
	Datasets []string
	// Name is the part behind the @, the same for all.
	Name string
	// Properties are user properties to set on them.
	Properties map[string]string
}

// CreateSpec is a file system or a volume to make.
type CreateSpec struct {
	Name string
	// VolumeSize in bytes makes it a volume; 0: a file system.
	VolumeSize uint64
	// Sparse reserves no space for a volume.
	Sparse     bool
	Properties map[string]string
}

// SendSpec is a stream to make.
type SendSpec struct {
	// From is the snapshot or bookmark that the increment begins at, in full; empty:
	// everything.
	From string
	// To is the snapshot to send, in full.
	To                                     string
	Raw, Compressed, LargeBlocks, Embedded bool
	// Token resumes what was cut off; it alone then says what is sent, and how. What
	// it names, DecodeToken tells: a target may have made it up.
	Token string
}

// ReceiveSpec is where a stream goes.
type ReceiveSpec struct {
	// Dataset receives; a full stream makes it.
	Dataset string
	// Snapshot is the name that the received snapshot gets, behind the @, whatever the
	// stream says; empty: what the stream says.
	Snapshot string
	// Properties are set on it, whatever the stream says; Exclude are not taken from the
	// stream but inherited.
	Properties map[string]string
	Exclude    []string
	// Resumable keeps what has arrived when the stream breaks off.
	Resumable bool
	// Unmounted leaves a file system unmounted.
	Unmounted bool
}

// Token is what a resume token says.
type Token struct {
	// Name is the snapshot that is being sent, in full, by its name at the sender.
	Name string
	// ToGUID is its guid; FromGUID that of the snapshot or bookmark which the increment
	// begins at, 0 where everything is sent.
	ToGUID, FromGUID uint64
	// Bytes is how much of the stream has arrived.
	Bytes                                  uint64
	Raw, Compressed, LargeBlocks, Embedded bool
}
