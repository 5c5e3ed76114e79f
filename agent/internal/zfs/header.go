package zfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// The first record of a stream, as OpenZFS lays it out (struct
// dmu_replay_record with drr_begin, include/sys/zfs_ioctl.h), in the sender's
// byte order.
const (
	// StreamHeaderSize is the record's length.
	StreamHeaderSize = 312
	// StreamOffsetToGUID is where in it the guid of the stream's snapshot is.
	StreamOffsetToGUID = 40

	recordBegin      = 0
	recordMagic      = 0x2F5bacbac
	offsetMagic      = 8
	offsetVersion    = 16
	offsetType       = 32
	offsetFlags      = 36
	offsetFromGUID   = 48
	offsetName       = 56
	headerMask       = 0x3 // of the version: one stream, or a package of many
	headerSubstream  = 1
	featureRaw       = 1 << 26 // the version's features begin at bit 2
	flagClone        = 1
	objsetFilesystem = 2
	objsetVolume     = 3
)

// StreamHeader is what a stream says of itself.
type StreamHeader struct {
	// Packaged is one of several streams in one, Raw of blocks as they are on disk,
	// encrypted, Clone one that begins at another dataset's snapshot.
	Packaged, Raw, Clone bool
	// ToGUID is the snapshot's, FromGUID that of the one it begins at; 0: none.
	ToGUID, FromGUID uint64
	// Name is what the sender calls the snapshot.
	Name string

	objset uint32
}

// ReadStreamHeader reads a stream's first record.
func ReadStreamHeader(p []byte) (StreamHeader, error) {
	if len(p) < StreamHeaderSize {
		return StreamHeader{}, fmt.Errorf("a stream of %d bytes", len(p))
	}
	var order binary.ByteOrder = binary.LittleEndian
	if order.Uint64(p[offsetMagic:]) != recordMagic {
		order = binary.BigEndian
	}
	if order.Uint64(p[offsetMagic:]) != recordMagic || order.Uint32(p) != recordBegin {
		return StreamHeader{}, errors.New("not a stream of ZFS")
	}
	version := order.Uint64(p[offsetVersion:])
	name, _, _ := bytes.Cut(p[offsetName:StreamHeaderSize], []byte{0})
	return StreamHeader{
		Packaged: version&headerMask != headerSubstream, Raw: version&featureRaw != 0,
		Clone:  order.Uint32(p[offsetFlags:])&flagClone != 0,
		objset: order.Uint32(p[offsetType:]),
		ToGUID: order.Uint64(p[StreamOffsetToGUID:]), FromGUID: order.Uint64(p[offsetFromGUID:]), Name: string(name),
	}, nil
}

// PlannedStream is the only stream that is to come.
type PlannedStream struct {
	// To is the snapshot's name on the target, for errors.
	To               string
	ToGUID, FromGUID uint64
	Raw, Volume      bool
}

// Check refuses every stream but the one that is planned. A package of streams
// could make other datasets, destroy snapshots and set properties.
func (h StreamHeader) Check(planned PlannedStream) error {
	switch {
	case h.Packaged:
		return errors.New("a package of streams")
	case h.ToGUID != planned.ToGUID || h.FromGUID != planned.FromGUID:
		return fmt.Errorf("a stream of %.300q from %d to %d; planned is @%s from %d to %d",
			h.Name, h.FromGUID, h.ToGUID, planned.To, planned.FromGUID, planned.ToGUID)
	case h.Clone:
		return errors.New("a stream of a clone")
	case h.Raw != planned.Raw:
		return fmt.Errorf("a stream that is raw: %t; planned is %t", h.Raw, planned.Raw)
	case planned.Volume && h.objset != objsetVolume:
		return fmt.Errorf("a stream of something else (%d) than a volume", h.objset)
	case !planned.Volume && h.objset != objsetFilesystem:
		return fmt.Errorf("a stream of something else (%d) than a file system", h.objset)
	}
	return nil
}
