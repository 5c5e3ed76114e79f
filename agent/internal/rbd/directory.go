//go:build ceph_preview

package rbd

import (
	"bytes"
	"context"
	"encoding/binary"

	"github.com/ceph/go-ceph/rados"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// Where Ceph keeps the names of images (format 2; src/cls/rbd and rbd_types.h): the
// directory object's omap has name_<name> → id, and an object rbd_id.<name> has the
// id, by which the image is opened.
const (
	directoryObject = "rbd_directory"
	directoryName   = "name_"
	idObject        = "rbd_id."
	// trashObject's omap has what is in the trash, and what is being removed.
	trashObject = "rbd_trash"
)

// entry is the id that a name leads to, in either place; empty: to none.
type entry struct{ dir, object string }

// directory looks a name up in both places.
func (c *cluster) directory(ctx context.Context, r *request, pool *rados.IOContext, id *agentv1.RbdImageID) (entry, error) {
	var e entry
	if err := r.step(ctx, "looking for %s in its pool's directory", Shown(id)); err != nil {
		return e, err
	}
	key := directoryName + id.GetName()
	values, err := pool.GetOmapValues(directoryObject, "", key, 1) // the first of the prefix is the key itself
	if err != nil && errno(err) != notFound {
		return e, translate(err, false, "looking for %s in its pool's directory", Shown(id))
	}
	e.dir = text(values[key])
	e.object, err = c.idOf(ctx, r, pool, id)
	return e, err
}

// halfRemoved tells whether an image's removal has begun and not ended: it is found
// under its name no more, and Ceph's list of the trash does not show it.
func (c *cluster) halfRemoved(ctx context.Context, r *request, pool *rados.IOContext, id *agentv1.RbdImageID) (bool, error) {
	if err := r.step(ctx, "looking for %s among what is removed", Shown(id)); err != nil {
		return false, err
	}
	entries, err := pool.GetAllOmapValues(trashObject, "", "", 1000)
	if err != nil && errno(err) != notFound {
		return false, translate(err, false, "looking for %s among what is removed", Shown(id))
	}
	name := encode(nil, id.GetName())
	for _, spec := range entries {
		if bytes.Contains(spec, name) {
			return true, nil
		}
	}
	return false, nil
}

// idOf reads the id that a name opens; empty: none.
func (c *cluster) idOf(ctx context.Context, r *request, pool *rados.IOContext, id *agentv1.RbdImageID) (string, error) {
	if err := r.step(ctx, "looking for the id of %s", Shown(id)); err != nil {
		return "", err
	}
	content := make([]byte, 256)
	n, err := pool.Read(idObject+id.GetName(), content, 0)
	if err != nil && errno(err) != notFound {
		return "", translate(err, false, "looking for the id of %s", Shown(id))
	}
	return text(content[:n]), nil
}

// forget takes the name away that opens an image, and leaves the image alone.
func (c *cluster) forget(ctx context.Context, r *request, pool *rados.IOContext, id *agentv1.RbdImageID) error {
	if err := r.step(ctx, "removing the left-over name %s", Shown(id)); err != nil {
		return err
	}
	if err := pool.Delete(idObject + id.GetName()); err != nil && errno(err) != notFound {
		return translate(err, true, "removing the left-over name %s", Shown(id))
	}
	return nil
}

// encode is what text reads.
func encode(to []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint32(to, uint32(len(s))), s...)
}

// text is a string as Ceph encodes it: its length as four bytes, then itself.
func text(encoded []byte) string {
	if len(encoded) < 4 {
		return ""
	}
	size := binary.LittleEndian.Uint32(encoded)
	if uint64(size) > uint64(len(encoded)-4) {
		return ""
	}
	return string(encoded[4 : 4+size])
}
