package diskcopy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
)

// File is a file or block device to copy: what one side knows of it.
type File struct {
	// Target is the guest's name of the disk ("vda"): the two sides' word for it.
	Target string
	// Path is absolute, on this host.
	Path string
	// Block tells that it is a block device, which must be there on the target.
	Block bool
	// Size is how many bytes it may have at most; 0: any number.
	Size uint64
}

// Options of a copy.
type Options struct {
	// ID is the copy's, the same after every restart; it becomes part of the
	// names under which files grow. Receive needs it.
	ID string
	// Limit tells how many bytes a second may be sent at present; nil or 0: any
	// number. It is asked all the time.
	Limit func() uint64
	// Progress hears how many bytes of a file are as they are to be on the
	// target, holes counted. It must return at once; calls follow one another.
	Progress func(done, total uint64)
	Log      hclog.Logger
}

// Result is what Send has done.
type Result struct {
	// Size is the file's, Sent how many bytes of its content went over the
	// connections, in all attempts. What was zero or already there did not.
	Size, Sent uint64
	// Attempts is how many connections it took.
	Attempts int
	// Sum is the whole file's checksum in hexadecimal digits: the SHA-256 of its
	// size and its chunks' hashes.
	Sum string
}

// Dial connects to the target.
type Dial = func(context.Context) (net.Conn, error)

var errNoID = errors.New("a copy of disks needs an id")

// partial is the name under which the file grows: in the same directory, and no
// longer than a name may be, however long the file's own is.
func (f File) partial(id string) string {
	sum := sha(id, filepath.Base(f.Path))
	return filepath.Join(filepath.Dir(f.Path), ".debvisor-"+hex.EncodeToString(sum[:12]))
}

// sha is a hash of parts that keeps them apart.
func sha(parts ...string) digest {
	h := sha256.New()
	for _, p := range parts {
		one := sha256.Sum256([]byte(p))
		_, _ = h.Write(one[:])
	}
	return digest(h.Sum(nil))
}

func (f File) String() string { return fmt.Sprintf("%s (%s)", f.Target, f.Path) }
