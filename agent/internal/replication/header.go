package replication

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// The first record of a stream, as OpenZFS lays it out (struct
// dmu_replay_record with drr_begin, include/sys/zfs_ioctl.h), in the sender's
// byte order.
const (
	headerSize = 312

	recordBegin      = 0
	recordMagic      = 0x2F5bacbac
	offsetMagic      = 8
	offsetVersion    = 16
	offsetType       = 32
	offsetFlags      = 36
	offsetToGUID     = 40
	offsetFromGUID   = 48
	offsetName       = 56
	headerMask       = 0x3 // of the version: one stream, or a package of many
	headerSubstream  = 1
	featureRaw       = 1 << 26 // the version's features begin at bit 2
	flagClone        = 1
	objsetFilesystem = 2
	objsetVolume     = 3
)

// header is what a stream says of itself.
type header struct {
	packaged, raw, clone bool
	objset               uint32
	toGUID, fromGUID     uint64
	name                 string
}

// readHeader reads a stream's first record.
func readHeader(p []byte) (header, error) {
	if len(p) < headerSize {
		return header{}, fmt.Errorf("a stream of %d bytes", len(p))
	}
	var order binary.ByteOrder = binary.LittleEndian
	if order.Uint64(p[offsetMagic:]) != recordMagic {
		order = binary.BigEndian
	}
	if order.Uint64(p[offsetMagic:]) != recordMagic || order.Uint32(p) != recordBegin {
		return header{}, errors.New("not a stream of ZFS")
	}
	version := order.Uint64(p[offsetVersion:])
	name, _, _ := bytes.Cut(p[offsetName:headerSize], []byte{0})
	return header{
		packaged: version&headerMask != headerSubstream, raw: version&featureRaw != 0,
		clone:  order.Uint32(p[offsetFlags:])&flagClone != 0,
		objset: order.Uint32(p[offsetType:]),
		toGUID: order.Uint64(p[offsetToGUID:]), fromGUID: order.Uint64(p[offsetFromGUID:]), name: string(name),
	}, nil
}

// check refuses every stream but the one that is planned. A package of streams
// could make other datasets, destroy snapshots and set properties.
func (h header) check(spec *agentv1.ReplicateReceive, step *agentv1.ReplicationStep) error {
	volume := spec.GetType() == agentv1.ZfsType_ZFS_TYPE_VOLUME
	switch {
	case h.packaged:
		return errors.New("a package of streams")
	case h.toGUID != step.GetToGuid() || h.fromGUID != step.GetFromGuid():
		return fmt.Errorf("a stream of %.300q from %d to %d; planned is @%s from %d to %d",
			h.name, h.fromGUID, h.toGUID, step.GetTo(), step.GetFromGuid(), step.GetToGuid())
	case h.clone:
		return errors.New("a stream of a clone")
	case h.raw != spec.GetRaw():
		return fmt.Errorf("a stream that is raw: %t; planned is %t", h.raw, spec.GetRaw())
	case volume && h.objset != objsetVolume, !volume && h.objset != objsetFilesystem:
		return fmt.Errorf("a stream of something else (%d) than a %s", h.objset, spec.GetType())
	}
	return nil
}
