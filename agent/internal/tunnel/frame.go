package tunnel

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
)

// channel is what a connection carries.
type channel byte

const (
	libvirtChannel channel = 'L'
	memoryChannel  channel = 'M'
	diskChannel    channel = 'D' // QEMU's NBD
	copyChannel    channel = 'C' // our own copy of disks
	// streamChannel is none of a migration's: see Streams.
	streamChannel channel = 'S'
)

// channelNames are all channels, by the name that logs have for them.
var channelNames = map[channel]string{
	libvirtChannel: "libvirt", memoryChannel: "memory", diskChannel: "disks", copyChannel: "copy",
}

func (c channel) String() string { return channelNames[c] }

var frameMagic = []byte("dvt1")

// writeOpening sends the first bytes of a connection: what it carries, and by
// which right.
func writeOpening(w io.Writer, c channel, rightID string) error {
	if len(rightID) > 255 {
		return errors.New("the right's id is too long")
	}
	frame := append([]byte{}, frameMagic...)
	frame = append(frame, byte(c), byte(len(rightID)))
	_, err := w.Write(append(frame, rightID...))
	return err
}

// readOpening reads them and checks the right, in a time that does not tell how
// much of its id was good.
func readOpening(r io.Reader, rightID string) (channel, error) {
	c, err := readKnock(r, rightID)
	if err == nil && channelNames[c] == "" {
		err = fmt.Errorf("unknown channel %q", byte(c))
	}
	return c, err
}

// readKnock is readOpening for whatever it is to carry.
func readKnock(r io.Reader, rightID string) (channel, error) {
	head := make([]byte, len(frameMagic)+2)
	if _, err := io.ReadFull(r, head); err != nil {
		return 0, fmt.Errorf("reading the opening: %w", err)
	}
	if !bytes.Equal(head[:len(frameMagic)], frameMagic) {
		return 0, errors.New("not a tunnel's opening")
	}
	c := channel(head[len(frameMagic)])
	given := make([]byte, head[len(frameMagic)+1])
	if _, err := io.ReadFull(r, given); err != nil {
		return 0, fmt.Errorf("reading the opening: %w", err)
	}
	want, got := sha256.Sum256([]byte(rightID)), sha256.Sum256(given)
	if subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
		return 0, errors.New("not the right that this tunnel was made for")
	}
	return c, nil
}
