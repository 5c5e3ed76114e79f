package diskcopy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// place is where a file is written on the target.
type place struct {
	f       File
	partial string // the other name; empty for a block device
	file    *os.File
	size    uint64
	// done tells that the file has its own name already: it is only compared.
	done bool
}

// openPlace makes a file ready to be written, or goes on with what is there of
// it.
func openPlace(f File, id string, size uint64) (*place, error) {
	if f.Size > 0 && size > f.Size {
		return nil, fmt.Errorf("%s has %d bytes on the source, more than the %d that were planned", f.Target, size, f.Size)
	}
	if f.Block {
		return openDevice(f, size)
	}
	p := &place{f: f, partial: f.partial(id), size: size}
	var err error
	if p.done, err = isDone(f, p.partial); err != nil {
		return nil, err
	}
	// Whoever may write to the directory must not have us write elsewhere.
	flags := os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW
	if p.done {
		flags = os.O_RDONLY | unix.O_NOFOLLOW
	}
	if p.file, err = os.OpenFile(p.partial, flags, 0o600); err != nil {
		return nil, err
	}
	at, err := p.file.Stat()
	switch {
	case err != nil:
	case !at.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", p.partial)
	case p.done && at.Size() != int64(size):
		err = fmt.Errorf("%s has %d bytes, but %d on the source", f, at.Size(), size)
	case !p.done:
		err = p.file.Truncate(int64(size))
	}
	if err != nil {
		return nil, errors.Join(err, p.file.Close())
	}
	return p, nil
}

func openDevice(f File, size uint64) (*place, error) {
	file, err := os.OpenFile(f.Path, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return nil, err
	}
	at, err := file.Stat()
	if err == nil && at.Mode()&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice {
		err = fmt.Errorf("%s is not a block device", f.Path)
	}
	var there int64
	if err == nil {
		there, err = file.Seek(0, io.SeekEnd)
	}
	if err == nil && uint64(there) < size {
		err = fmt.Errorf("%s has %d bytes, but %d on the source", f, there, size)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &place{f: f, file: file, size: size}, nil
}

// isDone tells whether the file has its own name, given by this copy. A file of
// that name that is another's is an error.
func isDone(f File, partial string) (bool, error) {
	own, err := os.Lstat(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	other, err := os.Lstat(partial)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err != nil || !os.SameFile(own, other) {
		return false, fmt.Errorf("%s exists already", f.Path)
	}
	return true, nil
}

// write puts a chunk's blocks in their place; of what was there before, nothing is
// left where clear is set.
func (p *place) write(index uint64, chunk []byte, mask *blocks, clear bool) error {
	if clear {
		if err := p.zero(index); err != nil {
			return err
		}
	}
	for from := 0; from < len(chunk); {
		if !mask.has(from / blockSize) {
			from += blockSize
			continue
		}
		to := from
		for to < len(chunk) && mask.has(to/blockSize) {
			to += blockSize
		}
		to = min(to, len(chunk))
		if _, err := p.file.WriteAt(chunk[from:to], int64(index)*chunkSize+int64(from)); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// zero makes a chunk all zeros, without any blocks where that can be done.
func (p *place) zero(index uint64) error {
	at, n := int64(index)*chunkSize, lengthOf(index, p.size)
	err := unix.Fallocate(int(p.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, int64(n))
	if err == nil {
		return nil
	}
	_, err = p.file.WriteAt(make([]byte, n), at)
	return err
}

// sum syncs the file and reads it again from end to end. stop is asked between chunks.
func (p *place) sum(stop func() error) (digest, error) {
	if err := p.file.Sync(); err != nil {
		return digest{}, err
	}
	c, all := newContent(p.file, p.size), newSum(p.size)
	for {
		index, chunk, err := c.read(stop)
		if errors.Is(err, io.EOF) {
			return all.digest(), nil
		}
		if err != nil {
			return digest{}, err
		}
		all.add(index, sha256.Sum256(chunk))
	}
}

// finish gives the file its own name, which must be free, for good.
func (p *place) finish() error {
	if p.f.Block || p.done {
		return nil
	}
	if err := os.Link(p.partial, p.f.Path); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already", p.f.Path)
	} else if err != nil {
		return err
	}
	p.done = true
	return syncDir(p.f)
}

func syncDir(f File) error {
	dir, err := os.Open(filepath.Dir(f.Path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Keep ends a copy that came to its end: the files have but their own names from
// then on. It may be called again.
func Keep(files []File, id string) error {
	return each(files, id, func(f File, partial string) error {
		if done, err := isDone(f, partial); err != nil || !done {
			return nil //nolint:nilerr // nothing of ours has the name: there is nothing to let go
		}
		return os.Remove(partial)
	})
}

// Discard ends a copy that is not wanted: files that it made are removed, under
// whatever name. What was there before is not, nor what Keep let go, nor what a
// block device has got. It may be called again.
func Discard(files []File, id string) error {
	return each(files, id, func(f File, partial string) error {
		// The other name goes last: it tells whose the file is.
		if done, err := isDone(f, partial); err == nil && done {
			if err := os.Remove(f.Path); err != nil {
				return err
			}
			if err := syncDir(f); err != nil {
				return err
			}
		}
		if err := os.Remove(partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

func each(files []File, id string, do func(f File, partial string) error) error {
	if id == "" {
		return errNoID
	}
	var errs []error
	for _, f := range files {
		if f.Block {
			continue
		}
		err := do(f, f.partial(id))
		if err == nil {
			err = syncDir(f)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // not even the directory is there
			errs = append(errs, fmt.Errorf("%s: %w", f, err))
		}
	}
	return errors.Join(errs...)
}
