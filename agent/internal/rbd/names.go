package rbd

import agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"

// Shown is an image as people write it: pool/image or pool/namespace/image.
func Shown(id *agentv1.RbdImageID) string {
	if id.GetNamespace() == "" {
		return id.GetPool() + "/" + id.GetName()
	}
	return id.GetPool() + "/" + id.GetNamespace() + "/" + id.GetName()
}

// ShownSnapshot is a snapshot as people write it: image@snapshot.
func ShownSnapshot(id *agentv1.RbdSnapshotID) string {
	return Shown(id.GetImage()) + "@" + id.GetName()
}

// growing is the name of a clone until it is complete.
func growing(operation string) string { return ".dv-" + operation }

// Growing is the clone of an operation that did not come to its end; RemoveImage
// takes it away.
func Growing(image *agentv1.RbdImageID, operation string) *agentv1.RbdImageID {
	return &agentv1.RbdImageID{Pool: image.GetPool(), Namespace: image.GetNamespace(), Name: growing(operation)}
}
