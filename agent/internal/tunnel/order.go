package tunnel

import (
	"context"
	"io"
	"net"
	"sync"
)

// mainMagic begins QEMU's main stream of a migration (QEMU_VM_FILE_MAGIC); the
// streams beside it begin with another.
const mainMagic = "QEVM"

// order is the order in which the target's QEMU has to be connected to: up to
// version 7.2 it takes the first that comes for the main stream, whatever is said
// in it. Through a tunnel any may come first.
type order struct {
	once  sync.Once
	there chan struct{} // closed once the main stream's connection is there
}

// inOrder waits until a connection may be made for a stream, and gives what has
// been read of the stream for that. Only memory that comes in several streams has
// an order.
func (e *end) inOrder(ctx context.Context, c channel, far io.Reader) ([]byte, error) {
	if c != memoryChannel || !e.cfg.Parallel {
		return nil, nil
	}
	first := make([]byte, len(mainMagic))
	if _, err := io.ReadFull(far, first); err != nil || string(first) == mainMagic {
		return first, err
	}
	select {
	case <-e.order.there:
		return first, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ordered hands on what inOrder has read, and lets the others come once the main
// stream's connection is there.
func (e *end) ordered(local net.Conn, first []byte) error {
	if len(first) == 0 {
		return nil
	}
	if string(first) == mainMagic {
		e.order.once.Do(func() { close(e.order.there) })
	}
	_, err := local.Write(first)
	return err
}
