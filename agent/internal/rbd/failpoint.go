package rbd

// Where the child may die between two of its promises; the fault tests end it there.
const (
	pointSnapshotMarked = "rbdSnapshotMarked" // metadata written, no snapshot yet
	pointSnapshotTaken  = "rbdSnapshotTaken"  // taken, nobody has heard
)

func failpoint(point string) {
	switch point {
	case pointSnapshotMarked:
		// gofail: var rbdSnapshotMarked struct{}
	case pointSnapshotTaken:
		// gofail: var rbdSnapshotTaken struct{}
	}
}
