package rbd

import (
	"encoding/binary"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"
)

// maxFrame bounds what either side takes into memory at once, in bytes.
const maxFrame = 16 << 20

// verb is what a frame is about. Requests go down to the child, the rest comes up.
type verb uint8

const (
	// verbCancel: whoever asked has gone; no further step is begun for it.
	verbCancel verb = iota + 1
	verbProbe
	verbInventory
	verbList
	verbCreate
	verbRemove
	verbClone
	verbFlatten
	verbRemoveImage
	verbFence
	verbUnfence
	verbBury
	verbImage
	verbBlocklist

	// verbHello is the first frame of a child: it is connected.
	verbHello verb = iota + 64
	// verbStep: a step that may block begins; how long it may is told with it, and
	// nothing that came before it does block.
	verbStep
	verbPart
	verbDone
	verbFailed
)

// frame is one message between agent and child: the length of what follows as four
// bytes, the request's number as eight, the verb as one, and the payload.
type frame struct {
	id      uint64
	verb    verb
	payload []byte
}

func writeFrame(w io.Writer, f frame) error {
	if len(f.payload) > maxFrame-9 {
		return fmt.Errorf("a message of %d bytes is too long: at most %d", len(f.payload), maxFrame-9)
	}
	buf := make([]byte, 0, 13+len(f.payload))
	buf = binary.BigEndian.AppendUint32(buf, uint32(9+len(f.payload)))
	buf = binary.BigEndian.AppendUint64(buf, f.id)
	buf = append(buf, byte(f.verb))
	_, err := w.Write(append(buf, f.payload...)) // whole frames only: writers take turns
	return err
}

func readFrame(r io.Reader) (frame, error) {
	var head [13]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < 9 || size > maxFrame {
		return frame{}, fmt.Errorf("a message of %d bytes: 9 to %d are possible", size, maxFrame)
	}
	f := frame{id: binary.BigEndian.Uint64(head[4:]), verb: verb(head[12]), payload: make([]byte, size-9)}
	_, err := io.ReadFull(r, f.payload)
	return f, err
}

// decoded is a payload as a message.
func decoded[M proto.Message](payload []byte, m M) (M, error) {
	if err := proto.Unmarshal(payload, m); err != nil {
		return m, fmt.Errorf("reading what was said between agent and child: %w", err)
	}
	return m, nil
}
