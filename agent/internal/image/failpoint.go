package image

// Where an agent may die between two steps; the fault tests stop it there.
const (
	pointSnapshotBefore = "imageSnapshotBefore"
	pointSnapshotTaken  = "imageSnapshotTaken"
	pointSnapshotFrozen = "imageSnapshotFrozen" // taken of a frozen guest, and noted so
	pointSnapshotUndo   = "imageSnapshotUndo"   // taken of one that was not, and to go
	pointRemoveBefore   = "imageRemoveBefore"   // before each snapshot's removal
	pointRemoved        = "imageRemoved"        // after each
	pointCloneBefore    = "imageCloneBefore"
	pointCloned         = "imageCloned"
	pointFlattenBefore  = "imageFlattenBefore"
	pointFlattening     = "imageFlattening" // some of it has been copied
	pointFlattened      = "imageFlattened"
	pointDeleteBefore   = "imageDeleteBefore"
	pointDeleted        = "imageDeleted"
	pointFenceFound     = "imageFenceFound" // who is there is noted, nobody is blocklisted
	pointFenced         = "imageFenced"
	pointUnfenceBefore  = "imageUnfenceBefore"
	pointUnfenced       = "imageUnfenced"
)

// pass is called where it says.
func (i *Images) pass(point string) {
	i.passing(point)
	switch point {
	case pointSnapshotBefore:
		// gofail: var imageSnapshotBefore struct{}
	case pointSnapshotTaken:
		// gofail: var imageSnapshotTaken struct{}
	case pointSnapshotFrozen:
		// gofail: var imageSnapshotFrozen struct{}
	case pointSnapshotUndo:
		// gofail: var imageSnapshotUndo struct{}
	case pointRemoveBefore:
		// gofail: var imageRemoveBefore struct{}
	case pointRemoved:
		// gofail: var imageRemoved struct{}
	case pointFenceFound:
		// gofail: var imageFenceFound struct{}
	case pointFenced:
		// gofail: var imageFenced struct{}
	case pointUnfenceBefore:
		// gofail: var imageUnfenceBefore struct{}
	case pointUnfenced:
		// gofail: var imageUnfenced struct{}
	}
	passClone(point)
}

func passClone(point string) {
	switch point {
	case pointCloneBefore:
		// gofail: var imageCloneBefore struct{}
	case pointCloned:
		// gofail: var imageCloned struct{}
	case pointFlattenBefore:
		// gofail: var imageFlattenBefore struct{}
	case pointFlattening:
		// gofail: var imageFlattening struct{}
	case pointFlattened:
		// gofail: var imageFlattened struct{}
	case pointDeleteBefore:
		// gofail: var imageDeleteBefore struct{}
	case pointDeleted:
		// gofail: var imageDeleted struct{}
	}
}
