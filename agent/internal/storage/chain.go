package storage

import (
	"encoding/binary"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// maxChain is how many images under an image are looked at.
	maxChain = 64
	// The header's extensions begin after it: it has this length in version 2, and
	// says its length in version 3.
	headerV2      = 72
	headerLength  = 100
	maxExtensions = 16
	backingFormat = 0xe2792aca
)

// Chain gives the images that a qcow2 image is an overlay of, the nearest first, as
// far as each overlay says that the next is qcow2 too: what is in a raw image is a
// guest's own, and never looked at. It may hang with the file system.
func Chain(image string) []string {
	var chain []string
	for format := "qcow2"; format == "qcow2" && len(chain) < maxChain; {
		h, next, err := readOverlay(image)
		if err != nil || h.backing == "" {
			break
		}
		image, format = absolute(h.backing, image), next
		chain = append(chain, image)
	}
	return chain
}

// readOverlay gives what an image says of itself, and of what format it says that
// the one under it is; empty: it does not.
func readOverlay(name string) (h header, format string, err error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return h, "", err
	}
	defer func() { _ = f.Close() }()
	h, err = parseHeader(f)
	if err != nil {
		return h, "", err
	}
	return h, formatUnder(f), nil
}

// formatUnder reads the extensions of an image's header.
func formatUnder(r io.ReaderAt) string {
	at := int64(headerV2)
	var word [8]byte
	if _, err := r.ReadAt(word[:], 0); err != nil {
		return ""
	}
	if binary.BigEndian.Uint32(word[4:]) >= 3 {
		if _, err := r.ReadAt(word[:4], headerLength); err != nil {
			return ""
		}
		at = int64(binary.BigEndian.Uint32(word[:4]))
	}
	for range maxExtensions {
		if _, err := r.ReadAt(word[:], at); err != nil {
			return ""
		}
		kind, length := binary.BigEndian.Uint32(word[:]), binary.BigEndian.Uint32(word[4:])
		switch {
		case kind == 0, kind == backingFormat && length > maxBacking:
			return ""
		case kind == backingFormat:
			text := make([]byte, length)
			if _, err := r.ReadAt(text, at+8); err != nil {
				return ""
			}
			return string(text)
		}
		at += 8 + (int64(length)+7)&^7
	}
	return ""
}
