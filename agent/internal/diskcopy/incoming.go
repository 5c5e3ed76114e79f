package diskcopy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxWrong is how often a file may turn out not to be what was sent, once all
// of it is on the disk, before the disk is thought to be broken.
const maxWrong = 3

// localError is one of the target's own, which a new connection does not put
// right.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

func local(err error) error {
	if err == nil {
		return nil
	}
	return localError{err}
}

// incoming is a file on its way over one connection.
type incoming struct {
	r   *receiving
	a   *arrival
	w   *wire
	p   *place
	buf []byte
}

// run tells the source what is there while it takes what comes: the source sends
// no chunk before it has heard what is there of it.
func (in *incoming) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	told := make(chan error, 1)
	go func() { told <- in.tell(ctx) }()
	var want digest
	want, err = in.take()
	switch {
	case err == nil:
		if err = <-told; err == nil {
			err = in.check(ctx, want)
		}
	case !errors.As(err, new(localError)):
		_ = in.w.conn.Close()
		err = errors.Join(err, <-told)
	default:
		cancel()
		defer func() { err = errors.Join(err, <-told) }()
	}
	if errors.As(err, new(localError)) {
		return in.r.refuse(in.w, err)
	}
	return err
}

// alive says from time to time that this side is at work.
func (in *incoming) alive(ctx context.Context) func() error {
	last := time.Now()
	return func() error {
		if time.Since(last) > aliveEvery {
			last = time.Now()
			if err := in.w.send([]byte{msgAlive}); err != nil {
				return err
			}
		}
		return ctx.Err()
	}
}

// tell sends the hashes of what is there.
func (in *incoming) tell(ctx context.Context) error {
	c := newContent(in.p.file, in.p.size)
	alive := in.alive(ctx)
	for {
		index, chunk, err := c.read(alive)
		if errors.Is(err, io.EOF) {
			return in.w.send([]byte{msgHaveEnd})
		}
		if err != nil && ctx.Err() == nil {
			return errors.Join(local(err), in.w.sendRefusal(err.Error()))
		}
		if err != nil {
			return err
		}
		d := sha256.Sum256(chunk)
		if err := in.w.send([]byte{msgHave}, u64(index), d[:]); err != nil {
			return err
		}
	}
}

// take writes what comes, until the source says what all of it should be.
func (in *incoming) take() (want digest, err error) {
	for {
		kind, err := in.w.next()
		if err != nil {
			return want, err
		}
		switch kind {
		case msgData:
			err = in.data()
		case msgZero:
			err = in.zero()
		case msgSum:
			return want, in.w.read(want[:])
		default:
			err = fmt.Errorf("message %q among chunks", kind)
		}
		if err != nil {
			return want, err
		}
	}
}

// index reads a chunk's.
func (in *incoming) index() (uint64, error) {
	index, err := in.w.uint64()
	switch {
	case err != nil:
		return 0, err
	case index >= chunks(in.p.size):
		return 0, fmt.Errorf("chunk %d of %d", index, chunks(in.p.size))
	case in.p.done:
		return 0, local(fmt.Errorf("%s is there already, and differs", in.p.f))
	default:
		return index, nil
	}
}

func (in *incoming) data() error {
	index, err := in.index()
	if err != nil {
		return err
	}
	var (
		flags [1]byte
		want  digest
		mask  blocks
	)
	for _, p := range [][]byte{flags[:], want[:], mask[:]} {
		if err := in.w.read(p); err != nil {
			return err
		}
	}
	chunk := in.buf[:lengthOf(index, in.p.size)]
	if mask.beyond(len(chunk)) {
		return fmt.Errorf("chunk %d has blocks beyond its end", index)
	}
	for from := 0; from < len(chunk); from += blockSize {
		block := chunk[from:min(len(chunk), from+blockSize)]
		if !mask.has(from / blockSize) {
			clear(block)
		} else if err := in.w.read(block); err != nil {
			return err
		}
	}
	if sha256.Sum256(chunk) != want {
		return fmt.Errorf("chunk %d is not what was sent", index)
	}
	if err := in.p.write(index, chunk, &mask, flags[0]&flagClear != 0); err != nil {
		return local(err)
	}
	in.r.progress(in.a, index*chunkSize+uint64(len(chunk)), in.p.size)
	return nil
}

func (in *incoming) zero() error {
	index, err := in.index()
	if err != nil {
		return err
	}
	return local(in.p.zero(index))
}

// check reads all of it from the disk, gives the file its name if it is what the
// source has, and waits until the source has heard so.
func (in *incoming) check(ctx context.Context, want digest) error {
	got, err := in.p.sum(in.alive(ctx))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return local(err)
	case got != want:
		in.a.wrong++
		err := fmt.Errorf("%s is not what was sent, once it is on the disk", in.p.f)
		if in.a.wrong >= maxWrong || in.p.done {
			return local(err)
		}
		return err
	}
	if err := in.p.finish(); err != nil {
		return local(err)
	}
	in.r.progress(in.a, in.p.size, in.p.size)
	in.r.mu.Lock()
	in.a.done = true
	in.r.mu.Unlock()
	if err := in.w.send([]byte{msgSum}, got[:]); err != nil {
		return err
	}
	if kind, err := in.w.next(); err != nil || kind != msgBye {
		return errors.Join(errors.New("the source may not know that the file is there"), err)
	}
	in.r.mu.Lock()
	in.a.known = true
	in.r.mu.Unlock()
	return nil
}
