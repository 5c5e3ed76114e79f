package rbd

// Where the child may die between two of its promises; the fault tests end it there.
const (
	pointSnapshotMarked  = "rbdSnapshotMarked"  // metadata written, no snapshot yet
	pointSnapshotTaken   = "rbdSnapshotTaken"   // taken, nobody has heard
	pointSnapshotRemoved = "rbdSnapshotRemoved" // gone, its metadata not
	pointGroupFilled     = "rbdGroupFilled"     // the group has its images, and no snapshot
	pointGroupTaken      = "rbdGroupTaken"      // the group's snapshot is taken, nobody has heard
	pointGroupLeaving    = "rbdGroupLeaving"    // a part may go, and is still there
	pointGroupRemoved    = "rbdGroupRemoved"    // the group's snapshot is gone, its metadata not
	pointCloneGrown      = "rbdCloneGrown"      // cloned, with its parent's metadata
	pointCloneCleaned    = "rbdCloneCleaned"    // looked at
	pointCloneMarked     = "rbdCloneMarked"     // complete, not renamed
	pointCloneNamed      = "rbdCloneNamed"      // its name opens it, its pool's directory has the old one
	pointCloneRenamed    = "rbdCloneRenamed"    // renamed, its old name opens it still
	pointImageTrashed    = "rbdImageTrashed"    // in the trash, not removed
	pointImageRemoved    = "rbdImageRemoved"    // gone, nobody has heard
	pointFenced          = "rbdFenced"          // one address is blocklisted
)

func failpoint(point string) {
	switch point {
	case pointSnapshotMarked:
		// gofail: var rbdSnapshotMarked struct{}
	case pointSnapshotTaken:
		// gofail: var rbdSnapshotTaken struct{}
	case pointSnapshotRemoved:
		// gofail: var rbdSnapshotRemoved struct{}
	case pointGroupFilled:
		// gofail: var rbdGroupFilled struct{}
	case pointGroupTaken:
		// gofail: var rbdGroupTaken struct{}
	case pointGroupLeaving:
		// gofail: var rbdGroupLeaving struct{}
	case pointGroupRemoved:
		// gofail: var rbdGroupRemoved struct{}
	case pointCloneGrown:
		// gofail: var rbdCloneGrown struct{}
	case pointCloneCleaned:
		// gofail: var rbdCloneCleaned struct{}
	case pointCloneMarked:
		// gofail: var rbdCloneMarked struct{}
	case pointCloneNamed:
		// gofail: var rbdCloneNamed struct{}
	case pointCloneRenamed:
		// gofail: var rbdCloneRenamed struct{}
	case pointImageTrashed:
		// gofail: var rbdImageTrashed struct{}
	case pointImageRemoved:
		// gofail: var rbdImageRemoved struct{}
	case pointFenced:
		// gofail: var rbdFenced struct{}
	}
}
