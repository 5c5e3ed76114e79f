package diskcopy

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

const mib = 1 << 20

// hosts are a source and a target with a way between them that can be cut.
type hosts struct {
	t        *testing.T
	from, to File
	socket   string
	opts     Options
	// after cuts each connection of the source after so many bytes; 0: never.
	after atomic.Int64
	dials atomic.Int64
	got   atomic.Int64 // bytes sent by the source, all connections
}

func newHosts(t *testing.T, content []byte) *hosts {
	t.Helper()
	dir := t.TempDir()
	h := &hosts{t: t, socket: filepath.Join(shortDir(t), "s"), opts: Options{ID: "op-1"}}
	h.from = File{Target: "vda", Path: filepath.Join(dir, "source.img")}
	h.to = File{Target: "vda", Path: filepath.Join(dir, "target", "disk.img")}
	if err := os.Mkdir(filepath.Dir(h.to.Path), 0o755); err != nil {
		t.Fatal(err)
	}
	h.write(h.from.Path, content)
	return h
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dvc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// write writes a file without those of its blocks that are all zeros.
func (h *hosts) write(path string, content []byte) {
	h.t.Helper()
	f, err := os.Create(path)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(int64(len(content))); err != nil {
		h.t.Fatal(err)
	}
	for at := 0; at < len(content); at += blockSize {
		b := content[at:min(len(content), at+blockSize)]
		if isZero(b) {
			continue
		}
		if _, err := f.WriteAt(b, int64(at)); err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *hosts) dial(ctx context.Context) (net.Conn, error) {
	h.dials.Add(1)
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", h.socket)
	if err != nil {
		return nil, err
	}
	return &cuttable{Conn: c, h: h, left: h.after.Load()}, nil
}

// cuttable is a connection that breaks after some bytes.
type cuttable struct {
	net.Conn
	h    *hosts
	left int64
}

func (c *cuttable) Write(p []byte) (int, error) {
	c.h.got.Add(int64(len(p)))
	if c.left == 0 {
		return c.Conn.Write(p)
	}
	n := min(int64(len(p)), c.left)
	done, err := c.Conn.Write(p[:n])
	if c.left -= int64(done); c.left <= 0 && err == nil {
		_ = c.Close()
		return done, net.ErrClosed
	}
	return done, err
}

// receive begins to receive; the channel gives how it ended.
func (h *hosts) receive(ctx context.Context, files ...File) <-chan error {
	h.t.Helper()
	_ = os.Remove(h.socket)
	l, err := net.Listen("unix", h.socket)
	if err != nil {
		h.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		defer func() { _ = l.Close() }()
		done <- Receive(ctx, l, files, h.opts)
	}()
	return done
}

// copied copies and compares.
func (h *hosts) copied() Result {
	h.t.Helper()
	done := h.receive(h.t.Context(), h.to)
	res, err := Send(h.within(), h.dial, h.from, h.opts)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := <-done; err != nil {
		h.t.Fatal(err)
	}
	h.same()
	return res
}

func (h *hosts) within() context.Context {
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *hosts) same() {
	h.t.Helper()
	want, err1 := os.ReadFile(h.from.Path)
	got, err2 := os.ReadFile(h.to.Path)
	if err := errors.Join(err1, err2); err != nil {
		h.t.Fatal(err)
	}
	if !bytes.Equal(want, got) {
		h.t.Fatal("the copy differs")
	}
}

// names are what is in the target's directory.
func (h *hosts) names() []string {
	h.t.Helper()
	entries, err := os.ReadDir(filepath.Dir(h.to.Path))
	if err != nil {
		h.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// noise is a content with a hole, lonely blocks and an odd end.
func noise(size int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]byte, size)
	for at := 0; at < size; at += blockSize {
		inHole := at > size/4 && at < size/2
		if inHole || r.IntN(3) == 0 {
			continue
		}
		b := out[at:min(size, at+blockSize)]
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	}
	return out
}

func TestCopiesSparsely(t *testing.T) {
	for _, size := range []int{0, 1, blockSize, chunkSize, chunkSize + 1, 9*mib + 12345} {
		h := newHosts(t, noise(size))
		var last atomic.Uint64 // both sides tell
		h.opts.Progress = func(done, _ uint64) { last.Store(done) }
		res := h.copied()
		if res.Size != uint64(size) || res.Attempts != 1 || last.Load() != uint64(size) {
			t.Errorf("%d bytes: %+v, %d done", size, res, last.Load())
		}
		if got, want := allocated(t, h.to.Path), allocated(t, h.from.Path); got > want+64<<10 {
			t.Errorf("%d bytes: the copy has %d allocated, the source %d", size, got, want)
		}
		if err := Keep([]File{h.to}, "op-1"); err != nil {
			t.Fatal(err)
		}
		if left := h.names(); len(left) != 1 {
			t.Errorf("%d bytes: left behind: %v", size, left)
		}
		if err := Discard([]File{h.to}, "op-1"); err != nil || len(h.names()) != 1 {
			t.Errorf("a file that was kept is discarded: %v", err)
		}
	}
}

func TestZerosAreNotSent(t *testing.T) {
	const size = 64 * mib
	h := newHosts(t, nil)
	f, err := os.OpenFile(h.from.Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	// A hole of 31 MiB, zeros that are written, one block, and a hole again.
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 2*mib), 31*mib); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("here"), 40*mib+5*blockSize); err != nil {
		t.Fatal(err)
	}
	res := h.copied()
	if res.Sent != blockSize || allocated(t, h.to.Path) > 64<<10 {
		t.Errorf("%+v; %d bytes allocated", res, allocated(t, h.to.Path))
	}
}

func TestGoesOnAfterCuts(t *testing.T) {
	content := noise(24 * mib)
	h := newHosts(t, content)
	h.after.Store(5 * mib)
	res := h.copied()
	if res.Attempts < 3 {
		t.Errorf("it was cut %d times only", res.Attempts-1)
	}
	if res.Sent > uint64(len(content)) {
		t.Errorf("%d bytes sent of a file of %d: what was there was sent again", res.Sent, len(content))
	}
}

func TestGoesOnWhenEitherSideDies(t *testing.T) {
	h := newHosts(t, noise(32*mib))
	h.opts.Limit = func() uint64 { return 40 * mib }
	reached := func(n int64) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); h.got.Load() < n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d bytes were sent, not %d", h.got.Load(), n)
			}
		}
	}
	// The target dies, then the source; both come back.
	target, killTarget := context.WithCancel(t.Context())
	received := h.receive(target, h.to)
	source, killSource := context.WithCancel(t.Context())
	sent := make(chan error, 1)
	go func() {
		_, err := Send(source, h.dial, h.from, h.opts)
		sent <- err
	}()
	reached(4 * mib)
	killTarget()
	if err := <-received; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := os.Lstat(h.to.Path); err == nil {
		t.Fatal("half a file has its own name")
	}
	received = h.receive(t.Context(), h.to)
	reached(10 * mib)
	killSource()
	if err := <-sent; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	before := h.got.Load()
	res, err := Send(h.within(), h.dial, h.from, h.opts)
	if err := errors.Join(err, <-received); err != nil {
		t.Fatal(err)
	}
	h.same()
	if h.got.Load() > 26*mib || res.Sent > uint64(32*mib-before/2) {
		t.Errorf("%d bytes sent, %d of them in the end", h.got.Load(), res.Sent)
	}
}

// TestDoneIsDone has the target die between the file's name and the source's
// hearing of it.
func TestDoneIsDone(t *testing.T) {
	h := newHosts(t, noise(3*mib))
	h.copied() // and its agent forgets: nothing was kept
	if got := len(h.names()); got != 2 {
		t.Fatalf("%v", h.names())
	}
	if res := h.copied(); res.Sent != 0 {
		t.Errorf("%d bytes sent of what was there", res.Sent)
	}
	// Now somebody has written to it.
	f, err := os.OpenFile(h.to.Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("another"), 2*mib)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	done := h.receive(t.Context(), h.to)
	_, err = Send(h.within(), h.dial, h.from, h.opts)
	wantRefused(t, err, "differs")
	wantRefused(t, <-done, "differs")
	if err := Discard([]File{h.to}, h.opts.ID); err != nil || len(h.names()) != 0 {
		t.Errorf("left behind: %v, %v", h.names(), err)
	}
}

func wantRefused(t *testing.T, err error, words ...string) {
	t.Helper()
	if !errdefs.Is(err, errdefs.FailedPrecondition) {
		t.Errorf("%v, want a refusal", err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v does not say %q", err, w)
		}
	}
}

func TestOldContentIsReplaced(t *testing.T) {
	h := newHosts(t, noise(8*mib))
	old := noise(10 * mib)
	clear(old[:mib])
	copy(old[3*mib:], bytes.Repeat([]byte("old"), mib))
	h.write(h.to.partial(h.opts.ID), old)
	h.copied()
	if got, want := allocated(t, h.to.Path), allocated(t, h.from.Path); got > want+64<<10 {
		t.Errorf("the copy has %d allocated, the source %d", got, want)
	}
}

func TestRefuses(t *testing.T) {
	h := newHosts(t, noise(mib))
	h.write(h.to.Path, []byte("another's"))
	wantRefused(t, <-h.receive(t.Context(), h.to), "exists", h.to.Path)
	if err := Discard([]File{h.to}, h.opts.ID); err != nil || len(h.names()) != 1 {
		t.Errorf("another's file: %v, %v", h.names(), err)
	}

	// It appears while the copy is under way.
	h = newHosts(t, noise(mib))
	h.opts.Progress = func(uint64, uint64) { _ = os.WriteFile(h.to.Path, []byte("another's"), 0o600) }
	done := h.receive(t.Context(), h.to)
	_, err := Send(h.within(), h.dial, h.from, h.opts)
	wantRefused(t, err, "exists")
	wantRefused(t, <-done, "exists")
	if content, err := os.ReadFile(h.to.Path); err != nil || string(content) != "another's" {
		t.Errorf("%.20q, %v", content, err)
	}

	// More than either side expects.
	h = newHosts(t, noise(mib))
	small := h.from
	small.Size = mib - 1
	_, err = Send(h.within(), h.dial, small, h.opts)
	wantRefused(t, err, "1048576", "1048575")
	small = h.to
	small.Size = mib - 1
	done = h.receive(t.Context(), small)
	_, err = Send(h.within(), h.dial, h.from, h.opts)
	wantRefused(t, err, "1048576", "1048575")
	wantRefused(t, <-done)
	if len(h.names()) != 0 {
		t.Errorf("left behind: %v", h.names())
	}

	// A disk that is not to come; the others still may.
	other := h.from
	other.Target = "vdb"
	done = h.receive(t.Context(), h.to)
	_, err = Send(h.within(), h.dial, other, h.opts)
	wantRefused(t, err, "not to come")
	if _, err := Send(h.within(), h.dial, h.from, h.opts); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := Receive(t.Context(), nil, []File{h.to}, Options{}); err == nil {
		t.Error("a copy without an id was begun")
	}
}

func TestChangedSourceIsRefused(t *testing.T) {
	h := newHosts(t, noise(4*mib))
	h.opts.Limit = func() uint64 {
		now := time.Now().Add(time.Hour)
		_ = os.Chtimes(h.from.Path, now, now) // somebody writes to it
		return 0
	}
	done := h.receive(t.Context(), h.to)
	_, err := Send(h.within(), h.dial, h.from, h.opts)
	wantRefused(t, err, "written to")
	select {
	case err := <-done:
		t.Errorf("the target ended: %v", err)
	default:
	}
	if _, err := os.Lstat(h.to.Path); err == nil {
		t.Error("it has its name")
	}
}

func TestSeveralAtOnce(t *testing.T) {
	h := newHosts(t, noise(6*mib))
	var files []File
	for _, name := range []string{"vda", "vdb", "vdc"} {
		f := h.to
		f.Target, f.Path = name, h.to.Path+name
		files = append(files, f)
	}
	var mu sync.Mutex
	var last, total uint64
	h.opts.Progress = func(done, all uint64) {
		mu.Lock()
		defer mu.Unlock()
		last, total = done, all
	}
	done := h.receive(t.Context(), files...)
	var group sync.WaitGroup
	for _, f := range files {
		group.Go(func() {
			from := h.from
			from.Target = f.Target
			if _, err := Send(h.within(), h.dial, from, Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if last != 18*mib || total != 18*mib {
		t.Errorf("%d of %d done", last, total)
	}
	for _, f := range files {
		h.to.Path = f.Path
		h.same()
	}
}

func TestLimit(t *testing.T) {
	h := newHosts(t, bytes.Repeat([]byte("x"), 2*mib))
	h.opts.Limit = func() uint64 { return 4 * mib }
	begun := time.Now()
	h.copied()
	if took := time.Since(begun); took < 350*time.Millisecond || took > 3*time.Second {
		t.Errorf("2 MiB at 4 MiB/s took %v", took)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	h := newHosts(t, noise(96*mib))
	var most atomic.Uint64
	h.opts.Progress = func(uint64, uint64) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		most.Store(max(most.Load(), m.HeapInuse))
	}
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	done := h.receive(t.Context(), h.to)
	if _, err := Send(h.within(), h.dial, h.from, h.opts); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if grown := int64(most.Load()) - int64(before.HeapInuse); grown > 16*mib {
		t.Errorf("it took %d bytes of memory", grown)
	}
}

// FuzzReceive has a stranger say anything to the target.
func FuzzReceive(f *testing.F) {
	begin := append(append([]byte{msgHello}, magic...), u64(2*chunkSize)...)
	begin = append(begin, 3, 'v', 'd', 'a')
	f.Add(begin)
	f.Add(append(append(begin, msgZero), u64(1)...))
	f.Add(append(append(begin, msgData), make([]byte, 8+1+hashSize+maskSize)...))
	f.Add(append(append(begin, msgSum), make([]byte, hashSize)...))
	f.Fuzz(func(t *testing.T, said []byte) {
		to := File{Target: "vda", Path: filepath.Join(t.TempDir(), "disk"), Size: 4 * chunkSize}
		r := &receiving{o: Options{ID: "f"}.whole(), end: func(error) {}, files: map[string]*arrival{
			"vda": {f: to, turn: make(chan struct{}, 1)},
		}}
		near, far := net.Pipe()
		go func() {
			defer func() { _ = far.Close() }()
			go func() { _, _ = far.Write(said); _ = far.SetDeadline(time.Now()) }()
			var sink [4096]byte
			for {
				if _, err := far.Read(sink[:]); err != nil {
					return
				}
			}
		}()
		_ = r.serve(t.Context(), near)
		_ = near.Close()
	})
}
