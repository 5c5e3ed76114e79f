package rbd

import (
	"encoding/json"
	"strings"
)

// What we know of images and snapshots beyond Ceph's own is in the image's
// metadata, as JSON. Ceph copies an image's metadata to its clones: so each says
// which image it is about, and is nothing on another.
const (
	snapshotKey = "org.debvisor.snap."
	cloneKey    = "org.debvisor.clone"
)

// snapshotMark is what is known of the snapshot whose name follows the key.
type snapshotMark struct {
	Image     string `json:"image"` // its id
	Operation string `json:"operation"`
	Label     string `json:"label,omitempty"`
	Set       string `json:"set,omitempty"`
	Template  bool   `json:"template,omitempty"`
	// Group is the group's snapshot's; Leaving: this image's part of it is to be
	// removed, once those of the others are.
	Group   string `json:"group,omitempty"`
	Leaving bool   `json:"leaving,omitempty"`
	// Parts are the images of the group's snapshot, with their ids.
	Parts []part `json:"parts,omitempty"`
}

// part is an image by its id: names change.
type part struct {
	Pool      string `json:"pool"`
	Namespace string `json:"namespace,omitempty"`
	ID        string `json:"id"`
}

// cloneMark is on a clone that is complete.
type cloneMark struct {
	Image     string `json:"image"`
	Operation string `json:"operation"`
}

// marks are an image's own.
type marks struct {
	clone     cloneMark
	snapshots map[string]snapshotMark
	// strange are keys of ours that are another image's.
	strange []string
}

func readMarks(imageID string, metadata map[string]string) marks {
	m := marks{snapshots: map[string]snapshotMark{}}
	for key, value := range metadata {
		if key == cloneKey {
			var mark cloneMark
			if json.Unmarshal([]byte(value), &mark) == nil && mark.Image == imageID {
				m.clone = mark
				continue
			}
			m.strange = append(m.strange, key)
		}
		if name, ok := strings.CutPrefix(key, snapshotKey); ok {
			var mark snapshotMark
			if json.Unmarshal([]byte(value), &mark) == nil && mark.Image == imageID {
				m.snapshots[name] = mark
				continue
			}
			m.strange = append(m.strange, key)
		}
	}
	return m
}
