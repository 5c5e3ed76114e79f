//go:build ceph_preview

package rbd

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/ceph/go-ceph/rados"
	"golang.org/x/sys/unix"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// What is done to a clone before it has its name goes to its objects directly: to
// open an image takes as long as to clone it. The calls are those that librbd itself
// makes; clients and OSDs of all versions speak them to each other.
const metadataKey = "metadata_" // in the header's omap, before a key of metadata

// rawMarks reads what we have written of an image.
func (c *cluster) rawMarks(ctx context.Context, r *request, pool *rados.IOContext, id string) (marks, error) {
	if err := r.step(ctx, "reading the metadata of image %s", id); err != nil {
		return marks{}, err
	}
	values, err := pool.GetAllOmapValues(headerObject+id, "", metadataKey, 1000)
	if err != nil && errno(err) != notFound {
		return marks{}, translate(err, false, "reading the metadata of image %s", id)
	}
	metadata := map[string]string{}
	for key, value := range values {
		metadata[strings.TrimPrefix(key, metadataKey)] = string(value)
	}
	return readMarks(id, metadata), nil
}

// remark writes a mark and removes others, in one step.
func (c *cluster) remark(ctx context.Context, r *request, pool *rados.IOContext, id string, remove []string, key string, mark any) error {
	text, err := json.Marshal(mark)
	if err != nil {
		return err
	}
	op := rados.CreateWriteOp()
	defer op.Release()
	op.AssertExists()
	var keys []string
	for _, k := range remove {
		keys = append(keys, metadataKey+k)
	}
	if len(keys) > 0 {
		op.RmOmapKeys(keys)
	}
	op.SetOmap(map[string][]byte{metadataKey + key: text})
	return c.operate(ctx, r, pool, op, headerObject+id, "marking image "+id)
}

func (c *cluster) operate(ctx context.Context, r *request, pool *rados.IOContext, op *rados.WriteOp, object, doing string) error {
	if err := r.step(ctx, "%s", doing); err != nil {
		return err
	}
	if err := op.Operate(pool, object, rados.OperationNoFlag); err != nil {
		return translate(err, true, "%s", doing)
	}
	return nil
}

// takeName has a name open an image; false: it opens one already.
func (c *cluster) takeName(ctx context.Context, r *request, pool *rados.IOContext, name *agentv1.RbdImageID, id string) (bool, error) {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Create(rados.CreateExclusive)
	op.WriteFull(encode(nil, id))
	if err := r.step(ctx, "taking the name %s", Shown(name)); err != nil {
		return false, err
	}
	err := op.Operate(pool, idObject+name.GetName(), rados.OperationNoFlag)
	if errno(err) == -int(unix.EEXIST) {
		return false, nil
	}
	if err != nil {
		return false, translate(err, true, "taking the name %s", Shown(name))
	}
	return true, nil
}

// moveName renames an image in its pool's directory, as one step of the OSD's.
func (c *cluster) moveName(ctx context.Context, r *request, pool *rados.IOContext, from, to *agentv1.RbdImageID, id string) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Exec("rbd", "dir_rename_image", encode(encode(encode(nil, from.GetName()), to.GetName()), id))
	return c.operate(ctx, r, pool, op, directoryObject, "renaming "+Shown(from)+" to "+to.GetName())
}

// newest is the id of the image's newest snapshot if it has that name, else 0: to ask
// librbd would have it read all of the image's header again.
func (c *cluster) newest(ctx context.Context, r *request, i *image, name string) (uint64, error) {
	header := headerObject + i.is.GetId()
	read := func(key string) ([]byte, error) {
		if err := r.step(ctx, "reading %s of %s", key, Shown(i.is)); err != nil {
			return nil, err
		}
		values, err := i.pool.GetOmapValues(header, "", key, 1)
		if err != nil {
			return nil, translate(err, true, "reading %s of %s", key, Shown(i.is))
		}
		return values[key], nil
	}
	last, err := read("snap_seq")
	if err != nil || len(last) != 8 {
		return 0, err
	}
	id := binary.LittleEndian.Uint64(last)
	snapshot, err := read(fmt.Sprintf("snapshot_%016x", id))
	// The record begins with version, oldest version and length, then id and name.
	if err != nil || len(snapshot) < 14 || binary.LittleEndian.Uint64(snapshot[6:]) != id || text(snapshot[14:]) != name {
		return 0, err
	}
	return id, nil
}

// parentSpec is the snapshot that an image is a clone of.
type parentSpec struct {
	image    string
	snapshot uint64
}

// parentOf asks an image's header for its parent.
func (c *cluster) parentOf(ctx context.Context, r *request, pool *rados.IOContext, id string) (parentSpec, error) {
	if err := r.step(ctx, "asking image %s for its parent", id); err != nil {
		return parentSpec{}, err
	}
	op := rados.CreateReadOp()
	defer op.Release()
	exec := op.Exec("rbd", "parent_get", nil)
	if err := op.Operate(pool, headerObject+id, rados.OperationNoFlag); err != nil {
		return parentSpec{}, translate(err, false, "asking image %s for its parent", id)
	}
	said, err := exec.Bytes()
	if err != nil {
		return parentSpec{}, translate(err, false, "asking image %s for its parent", id)
	}
	return parseParent(said)
}

// parseParent reads cls::rbd::ParentImageSpec: version, oldest version and length,
// then the pool's number, its namespace, the image's id and the snapshot's.
func parseParent(b []byte) (parentSpec, error) {
	var p parentSpec
	short := fmt.Errorf("what Ceph says of an image's parent ends early: %x", b)
	if len(b) < 14 {
		return p, short
	}
	b = b[14:]
	for _, into := range []*string{new(string), &p.image} {
		if len(b) < 4 {
			return p, short
		}
		size := uint64(binary.LittleEndian.Uint32(b))
		if uint64(len(b)) < 4+size {
			return p, short
		}
		*into, b = string(b[4:4+size]), b[4+size:]
	}
	if len(b) < 8 {
		return p, short
	}
	p.snapshot = binary.LittleEndian.Uint64(b)
	return p, nil
}
