package diskcopy

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

type digest = [hashSize]byte

var zeroBlock [blockSize]byte

// isZero tells whether there is nothing but zeros.
func isZero(p []byte) bool {
	for len(p) > blockSize {
		if !bytes.Equal(p[:blockSize], zeroBlock[:]) {
			return false
		}
		p = p[blockSize:]
	}
	return bytes.Equal(p, zeroBlock[:len(p)])
}

// maskOf tells which blocks of a chunk are not all zeros.
func maskOf(chunk []byte) (m blocks) {
	for i := 0; i*blockSize < len(chunk); i++ {
		if !isZero(chunk[i*blockSize : min(len(chunk), (i+1)*blockSize)]) {
			m.set(i)
		}
	}
	return m
}

// chunks is how many a content of that size has.
func chunks(size uint64) uint64 { return (size + chunkSize - 1) / chunkSize }

// lengthOf is how long a chunk of a content of that size is.
func lengthOf(chunk, size uint64) int { return int(min(chunkSize, size-chunk*chunkSize)) }

// content reads a file chunk by chunk, and over its holes.
type content struct {
	file *os.File
	size uint64
	buf  []byte
	// next is the next chunk to read.
	next uint64
	// data and hole are the ends of what is known: up to data there is nothing,
	// then something up to hole.
	data, hole uint64
	dense      bool // the file system does not tell
}

func newContent(file *os.File, size uint64) *content {
	return &content{file: file, size: size, buf: make([]byte, chunkSize)}
}

// read gives the next chunk that is not all zeros, valid until the next call;
// io.EOF after the last. stop, if not nil, is asked between chunks.
func (c *content) read(stop func() error) (index uint64, chunk []byte, err error) {
	for c.next < chunks(c.size) {
		if stop != nil {
			if err := stop(); err != nil {
				return 0, nil, err
			}
		}
		at := c.next * chunkSize
		if skip := c.empty(at); skip > c.next {
			c.next = skip
			continue
		}
		chunk = c.buf[:lengthOf(c.next, c.size)]
		if _, err := c.file.ReadAt(chunk, int64(at)); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // the file has shrunk
			}
			return 0, nil, err
		}
		index = c.next
		c.next++
		if !isZero(chunk) {
			return index, chunk, nil
		}
	}
	return 0, nil, io.EOF
}

// empty tells the first chunk from at on that is not in a hole.
func (c *content) empty(at uint64) uint64 {
	if !c.dense && at >= c.hole {
		c.seek(at)
	}
	if c.dense || at+chunkSize > c.data {
		return at / chunkSize
	}
	return c.data / chunkSize
}

// seek asks the file system for the next data from at on, and its end.
func (c *content) seek(at uint64) {
	data, err := unix.Seek(int(c.file.Fd()), int64(at), unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // none up to the end
		end := chunks(c.size) * chunkSize
		c.data, c.hole = end, end
		return
	}
	var hole int64
	if err == nil {
		hole, err = unix.Seek(int(c.file.Fd()), data, unix.SEEK_HOLE)
	}
	c.dense = err != nil // EINVAL, for one: it cannot tell
	c.data, c.hole = uint64(data), uint64(hole)
}

// sum is the checksum of the whole: of the size and, in order, the chunks that are
// not all zeros.
type sum struct{ h hash.Hash }

func newSum(size uint64) sum {
	s := sum{sha256.New()}
	_, _ = s.h.Write(u64(size))
	return s
}

func (s sum) add(index uint64, d digest) {
	var row [8 + hashSize]byte
	binary.BigEndian.PutUint64(row[:], index)
	copy(row[8:], d[:])
	_, _ = s.h.Write(row[:])
}

func (s sum) digest() digest { return digest(s.h.Sum(nil)) }
