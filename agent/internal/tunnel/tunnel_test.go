package tunnel

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
)

// childMark makes this test's binary a tunnel's child.
const childMark = "DEBVISOR_TEST_TUNNEL_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childMark) == "" {
		os.Exit(m.Run())
	}
	run := func() error { return Main(os.Args[1:]) }
	if dir := os.Getenv(serviceMark); dir != "" && len(os.Args) == 1 {
		run = func() error { return serveUnderSystemd(dir) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const vm = "11111111-2222-3333-4444-555555555555"

// pair is two hosts and the right that a tunnel between them is made with.
type pair struct {
	t              *testing.T
	source, target *Tunnels
	out, in        Config
	ca             *certs.Authority
}

func newPair(t *testing.T) *pair {
	t.Helper()
	t.Setenv(childMark, "1")
	ca, err := certs.NewAuthority("testing", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, ca: ca, source: tunnels(t), target: tunnels(t)}
	common := Config{RightID: "r-1", ExpiresAt: time.Now().Add(time.Minute), VMUUID: vm, VMName: "web", Cluster: "testing"}
	p.out, p.in = common, common
	p.out.Role, p.out.TaskID, p.out.Peer, p.out.Certificates = Source, "op/1/migrate-send", "b", p.files("a")
	p.in.Role, p.in.TaskID, p.in.Peer, p.in.Certificates = Target, "op/1/migrate-receive", "a", p.files("b")
	p.in.Host, p.in.FirstPort, p.in.LastPort = "127.0.0.1", 17450, 17499
	p.in.QEMUUser, p.in.QEMUGroup = os.Getuid(), os.Getgid()
	p.in.LibvirtSocket = filepath.Join(shortDir(t), "libvirt")
	return p
}

// shortDir is short enough for sockets' names.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dvt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func tunnels(t *testing.T) *Tunnels {
	return &Tunnels{Root: shortDir(t), Command: []string{os.Args[0]}, Log: hclog.NewNullLogger()}
}

func (p *pair) files(node string) certs.Files {
	p.t.Helper()
	dir := p.t.TempDir()
	key, err := certs.NewKey()
	if err != nil {
		p.t.Fatal(err)
	}
	leaf, err := p.ca.Issue(key.Public(), certs.AgentLeaf("testing", node, 0), time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	f := certs.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	for path, data := range map[string][]byte{f.CA: p.ca.PEM(), f.Cert: leaf, f.Key: keyPEM} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
	return f
}

func (p *pair) open(t *Tunnels, cfg Config) *Tunnel {
	p.t.Helper()
	tun, err := t.Open(p.t.Context(), cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if p.t.Failed() {
			p.t.Logf("%s: %s", cfg.Role, readFile(tun.layout.log()))
		}
		_ = tun.Close()
	})
	return tun
}

// both opens the two ends.
func (p *pair) both() (source, target *Tunnel) {
	p.t.Helper()
	target = p.open(p.target, p.in)
	p.out.Address = target.Address()
	return p.open(p.source, p.out), target
}

// echo answers each connection to a unix socket with what it says, once it has
// said all.
func echo(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				data, _ := io.ReadAll(c)
				_, _ = c.Write(data)
			}()
		}
	}()
}

// ask sends all to a unix socket, ends sending and reads the answer.
func ask(t *testing.T, path string, send []byte) ([]byte, error) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(send); err != nil {
		return nil, err
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		return nil, err
	}
	return io.ReadAll(c)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestMemoryGoesThroughWhole(t *testing.T) {
	p := newPair(t)
	source, target := p.both()
	echo(t, target.layout.memory())
	send := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB
	got, err := ask(t, source.layout.memory(), send)
	if err != nil || !bytes.Equal(got, send) {
		t.Fatalf("%d bytes came back of %d: %v", len(got), len(send), err)
	}
	if at := target.Arrived(); time.Since(at) > 10*time.Second {
		t.Errorf("arrival noted at %v", at)
	}
	if source.Broken() != "" || target.HungUp() {
		t.Errorf("a clean end is told as broken: %q, hung up %v", source.Broken(), target.HungUp())
	}
}

func TestAQEMUThatEndsIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		channel channel
		unread  bool // the source sends what QEMU does not read any more
		want    bool
	}{
		"memory, in silence": {memoryChannel, false, true}, "memory, while it comes": {memoryChannel, true, true},
		"a disk, while it comes": {diskChannel, true, true}, "a disk, in silence": {diskChannel, false, false},
	} {
		p := newPair(t)
		p.in.CopyDisks, p.out.CopyDisks = []string{"vda"}, []string{"vda"}
		source, target := p.both()
		l, err := net.Listen("unix", target.layout.socket(c.channel))
		if err != nil {
			t.Fatal(err)
		}
		from, err := net.Dial("unix", source.layout.socket(c.channel))
		if err != nil {
			t.Fatal(err)
		}
		qemu, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := from.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(qemu, make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		if err := qemu.Close(); err != nil {
			t.Fatal(err)
		}
		eventually(t, name+": the source hears of it", func() bool {
			if c.unread {
				_, err = from.Write(make([]byte, 1<<20))
				return err != nil
			}
			_, err = from.Read(make([]byte, 1))
			return err != nil
		})
		if target.HungUp() != c.want || source.Broken() != "" {
			t.Errorf("%s: hung up %v, want %v; broken %q", name, target.HungUp(), c.want, source.Broken())
		}
		_, _ = from.Close(), l.Close()
	}
}

func TestOnlyMigrationOfThatVMReachesLibvirt(t *testing.T) {
	p := newPair(t)
	echo(t, p.in.LibvirtSocket)
	source, target := p.both()
	good := bytes.Join([][]byte{call(66, nil), opening("qemu:///system"), prepareAt(target.DataURI(), vm, "web", flagPaused|1)}, nil)
	got, err := ask(t, source.layout.libvirt(), good)
	if err != nil || !bytes.Equal(got, good) {
		t.Fatalf("a migration's calls: %q, %v", got, err)
	}
	if !target.Pending() {
		t.Error("a call that libvirtd has not answered is not pending")
	}
	for name, bad := range map[string][]byte{
		"create a domain": call(10, []byte("<domain/>!!!")),
		"another VM":      prepareAt(target.DataURI(), "aaaaaaaa-2222-3333-4444-555555555555", "web", flagPaused),
		"another name":    prepareAt(target.DataURI(), vm, "db", flagPaused),
		"not paused":      prepareAt(target.DataURI(), vm, "web", 1),
		"unsafe":          prepareAt(target.DataURI(), vm, "web", flagPaused|flagUnsafe),
	} {
		got, _ := ask(t, source.layout.libvirt(), append(call(66, nil), bad...))
		if bytes.Contains(got, bad[len(bad)-8:]) {
			t.Errorf("%s was let through", name)
		}
	}
}

func TestFoundAgainAndGoneAtTheEnd(t *testing.T) {
	p := newPair(t)
	source, target := p.both()
	again := p.open(p.target, p.in)
	if again.pid() != target.pid() || again.Address() != target.Address() {
		t.Errorf("a second Open made another end: %d and %d", again.pid(), target.pid())
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", source.pid()))
	if err != nil || !bytes.Contains(args, []byte(p.out.TaskID)) || bytes.Contains(args, []byte(p.out.RightID)) {
		t.Errorf("arguments %q: %v", args, err)
	}
	if err := source.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(p.source.Root); len(left) != 0 || source.Alive() {
		t.Errorf("left behind: %v, alive %v", left, source.Alive())
	}
	if err := p.source.Sweep(func(string) bool { return false }); err != nil {
		t.Error(err)
	}

	swept := func(known bool) bool {
		if err := p.target.Sweep(func(id string) bool { return known && id == p.in.TaskID }); err != nil {
			t.Error(err)
		}
		left, _ := os.ReadDir(p.target.Root)
		return len(left) == 0
	}
	if swept(false) || !target.Alive() {
		t.Error("an end that lives was swept away")
	}
	if err := target.kill(); err != nil {
		t.Fatal(err)
	}
	if swept(true) {
		t.Error("what a task's end has left was swept away")
	}
	if !swept(false) {
		t.Error("what a forgotten end has left was not swept away")
	}
}

func TestStrangersWhoOnlyConnectKeepNobodyOut(t *testing.T) {
	p := newPair(t)
	echo(t, p.in.LibvirtSocket)
	source, target := p.both()
	for range 2 * maxConnections {
		c, err := net.Dial("tcp", target.Address())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	want := call(66, nil)
	if got, err := ask(t, source.layout.libvirt(), want); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the source got %q, %v", got, err)
	}
}

func TestNobodyElseGetsIn(t *testing.T) {
	p := newPair(t)
	echo(t, p.in.LibvirtSocket)
	target := p.open(p.target, p.in)
	knock := func(node, right string) error {
		r, err := certs.NewReloader(p.files(node), hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.Dial("tcp", target.Address(), r.PeerClient("testing", "b"))
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if err := writeOpening(c, libvirtChannel, right); err != nil {
			return err
		}
		if _, err := c.Write(call(66, nil)); err != nil {
			return err
		}
		if err := c.CloseWrite(); err != nil {
			return err
		}
		got, err := io.ReadAll(c)
		if len(got) == 0 {
			return errors.Join(errors.New("nothing came back"), err)
		}
		return nil
	}
	if err := knock("a", "r-1"); err != nil {
		t.Errorf("the source itself: %v", err)
	}
	if knock("c", "r-1") == nil {
		t.Error("another node's agent got in")
	}
	if knock("a", "r-2") == nil || knock("a", "") == nil || knock("a", "r-1 ") == nil {
		t.Error("another right got in")
	}
	foreign := newPair(t)
	p.ca = foreign.ca
	if knock("a", "r-1") == nil {
		t.Error("another cluster's agent got in")
	}
}

func TestABrokenWayIsTold(t *testing.T) {
	p := newPair(t)
	source, target := p.both()
	l, err := net.Listen("unix", target.layout.memory())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := net.Dial("unix", source.layout.memory())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
	if err := target.kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the source's end tells that the way broke", func() bool { return source.Broken() != "" })
	if _, err := ask(t, source.layout.libvirt(), call(66, nil)); err == nil && !strings.Contains(source.Broken(), "dial") {
		t.Errorf("after the target's end has gone: %q", source.Broken())
	}
}

func TestExpires(t *testing.T) {
	p := newPair(t)
	p.in.ExpiresAt = time.Now().Add(300 * time.Millisecond)
	target := p.open(p.target, p.in)
	eventually(t, "the end closes when the right expires", func() bool { return !target.Alive() })
}

func TestDoesNotStartWithoutCertificate(t *testing.T) {
	p := newPair(t)
	p.in.Certificates.Key = "/nowhere"
	if _, err := p.target.Open(t.Context(), p.in); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("without a key: %v", err)
	}
	if left, _ := os.ReadDir(p.target.Root); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
