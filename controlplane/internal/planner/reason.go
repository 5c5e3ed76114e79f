package planner

import "fmt"

// Reason is one reason against a move.
type Reason struct {
	// Code is stable and for programs: one of the constants.
	Code string
	// Message is for people, with the figures.
	Message string
}

// The codes of reasons against moving a VM wherever to.
const (
	VMNotFound     = "VM_NOT_FOUND"
	VMConflict     = "VM_CONFLICT"
	VMInUse        = "VM_IN_USE"
	VMNotRunning   = "VM_NOT_RUNNING"
	WrongSource    = "WRONG_SOURCE"
	SourceNotHeard = "SOURCE_NOT_REACHABLE"
	SourceLibvirt  = "SOURCE_LIBVIRT_DOWN"
	Snapshots      = "SNAPSHOTS"
	HostDevice     = "HOST_DEVICE"
	// DiskNotCopyable also speaks against nodes: those that have another VM's
	// file of that name.
	DiskNotCopyable = "DISK_NOT_COPYABLE"
	// NotLive is a VM that runs, cannot move live and may not be shut down; why
	// is in Result.NotLive.
	NotLive = "NOT_LIVE"
	// VMTransient is a VM that could only move shut down, and would be gone then.
	VMTransient = "VM_TRANSIENT"
	// PauseNotAllowed is a deadline that would pause a VM whose policy forbids it.
	PauseNotAllowed = "PAUSE_NOT_ALLOWED"
)

// DiskCache is only ever a reason for which a VM cannot move live, as is
// SharedDirectory, which speaks against nodes as well.
const (
	DiskCache       = "DISK_CACHE_UNSAFE"
	SharedDirectory = "SHARED_DIRECTORY"
)

// The codes of reasons against a node.
const (
	NodeNotFound    = "NODE_NOT_FOUND"
	NodeNotHeard    = "NODE_NOT_REACHABLE"
	NodeLibvirt     = "NODE_LIBVIRT_DOWN"
	NodeCordoned    = "NODE_CORDONED"
	AlreadyThere    = "ALREADY_THERE"
	CapacityUnknown = "CAPACITY_UNKNOWN"
	Memory          = "MEMORY"
	NameClash       = "NAME_CLASH"
	UUIDClash       = "UUID_CLASH"
	CPUCount        = "CPU_COUNT"
	CPUIncompatible = "CPU_INCOMPATIBLE"
	// CPUNotCompared is a comparison that nobody has made yet: see Questions.
	CPUNotCompared = "CPU_NOT_COMPARED"
	Arch           = "ARCH"
	VirtType       = "VIRT_TYPE"
	MachineType    = "MACHINE_TYPE"
	// QEMUOlder is only against moving live.
	QEMUOlder       = "QEMU_OLDER"
	DiskUnreachable = "DISK_UNREACHABLE"
	DiskSpace       = "DISK_SPACE"
	// DiskExists is a ZFS dataset in the place of a volume that is to be made.
	DiskExists   = "DISK_EXISTS"
	Network      = "NETWORK"
	AntiAffinity = "ANTI_AFFINITY"
)

// objections collects reasons.
type objections struct {
	// terse counts them only: nobody will read them, and the first is enough.
	terse   bool
	count   int
	reasons []Reason
}

func (o *objections) no(code, format string, args ...any) {
	o.count++
	if !o.terse {
		o.reasons = append(o.reasons, Reason{code, fmt.Sprintf(format, args...)})
	}
}

// enough tells that further ones would change nothing.
func (o *objections) enough() bool { return o.terse && o.count > 0 }
