package tunnel

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
)

// recorder is a libvirtd that writes down what reaches it, and answers nothing.
type recorder struct {
	mu  sync.Mutex
	got bytes.Buffer
}

func record(t *testing.T, path string) *recorder {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	r := &recorder{}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(r, c); _ = c.Close() }()
		}
	}()
	return r
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.Write(p)
}

func (r *recorder) all() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.got.Bytes())
}

// attacker is whoever has the key of the source's agent, and the right.
type attacker struct {
	t       *testing.T
	tls     *tls.Config
	address string
	right   string
}

func newAttacker(p *pair, target *Tunnel) attacker {
	p.t.Helper()
	r, err := certs.NewReloader(p.out.Certificates, hclog.NewNullLogger())
	if err != nil {
		p.t.Fatal(err)
	}
	return attacker{p.t, r.PeerClient(p.out.Cluster, p.out.Peer), target.Address(), p.out.RightID}
}

// says sends packets on a channel and tells what came back before the target hung
// up; an error where it did not.
func (a attacker) says(c channel, packets ...[]byte) ([]byte, error) {
	conn, err := tls.Dial("tcp", a.address, a.tls)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := writeOpening(conn, c, a.right); err != nil {
		return nil, err
	}
	for _, p := range packets {
		if _, err := conn.Write(p); err != nil {
			break // hung up already
		}
	}
	got, err := io.ReadAll(conn)
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		return got, fmt.Errorf("the target did not hang up: %w", err)
	}
	return got, nil
}

// attempts are what a compromised source may try besides every other procedure.
func attempts(target *Tunnel) map[string][]byte {
	const other = "aaaaaaaa-2222-3333-4444-555555555555"
	data := param(paramURI, target.DataURI())
	define := func(body string) []byte {
		return migration(procPrepare, flagPaused|flagLive, param(paramXML, body), data)
	}
	web := func(inside string) []byte {
		return define("<domain><name>web</name><uuid>" + vm + "</uuid>" + inside + "</domain>")
	}
	good := param(paramXML, definition(vm, "web"))
	return map[string][]byte{
		"another VM":                 prepareAt(target.DataURI(), other, "web", flagPaused),
		"another name":               prepareAt(target.DataURI(), vm, "db", flagPaused),
		"renamed":                    migration(procPrepare, flagPaused, good, data, param(paramName, "db")),
		"not paused":                 prepareAt(target.DataURI(), vm, "web", flagLive),
		"unsafe":                     prepareAt(target.DataURI(), vm, "web", flagPaused|flagUnsafe),
		"post-copy":                  prepareAt(target.DataURI(), vm, "web", flagPaused|1<<15),
		"offline":                    prepareAt(target.DataURI(), vm, "web", flagOffline|flagPersist|flagPaused),
		"tunnelled":                  prepareAt(target.DataURI(), vm, "web", flagPaused|1<<2),
		"RDMA":                       prepareAt(target.DataURI(), vm, "web", flagPaused|1<<14),
		"disks unasked":              prepareAt(target.DataURI(), vm, "web", flagPaused|flagDisks),
		"a flag of the future":       prepareAt(target.DataURI(), vm, "web", flagPaused|1<<30),
		"finish of another":          migration(procFinish, flagPaused, param(paramXML, definition(other, "web"))),
		"finish of another's name":   migration(procFinish, flagPaused, param(paramName, "db")),
		"finish, not paused":         migration(procFinish, flagLive, param(paramName, "web")),
		"a port":                     migration(procPrepare, flagPaused, good, param(paramURI, "tcp://0.0.0.0:49152")),
		"another socket":             migration(procPrepare, flagPaused, good, param(paramURI, "unix:///run/libvirt/libvirt-sock")),
		"a path with dots":           migration(procPrepare, flagPaused, good, param(paramURI, strings.Replace(target.DataURI(), "/io/", "/io/../io/", 1))),
		"a path that goes on":        migration(procPrepare, flagPaused, good, param(paramURI, target.DataURI()+"\x00x")),
		"a listening address":        migration(procPrepare, flagPaused, good, data, param("listen_address", "0.0.0.0")),
		"another definition to keep": migration(procPrepare, flagPaused, good, data, param("persistent_xml", definition(other, "db"))),
		"a definition in a cookie":   cookie(procPrepare, target, definition(other, "db")),
		"at the end, in a cookie":    cookie(procFinish, target, definition(other, "db")),
		"two domains":                define(definition(vm, "web") + definition(other, "db")),
		"a domain in a domain":       web("<metadata><domain><uuid>" + other + "</uuid></domain></metadata><uuid>" + other + "</uuid>"),
		"a document type":            define(`<!DOCTYPE domain [<!ENTITY e "db">]>` + definition(vm, "web")),
		"an attribute by default":    define(`<!DOCTYPE domain [<!ATTLIST source file CDATA "/etc/shadow">]>` + definition(vm, "web")),
		"an instruction":             define(`<?xml-stylesheet href="x"?>` + definition(vm, "web")),
		"arguments for QEMU":         web("<commandline xmlns='" + qemuSpace + "'><arg value='-S'/></commandline>"),
		"QEMU as root":               web("<seclabel type='static' model='dac'><label>root:root</label></seclabel>"),
		"no confinement":             web("<seclabel type='none'/>"),
		"a file of the host":         web("<devices><disk type='file'><source file='/etc/shadow'/><target dev='vda'/></disk></devices>"),
		"a file below":               web("<devices><disk type='file'><source file='/disks/web.img'/><backingStore type='file'><source file='/etc/shadow'/></backingStore></disk></devices>"),
		"a device of the host":       web("<devices><disk type='block'><source dev='/dev/sda'/></disk></devices>"),
		"a volume":                   web("<devices><disk type='volume'><source pool='default' volume='db'/></disk></devices>"),
		"the default driver":         call(procOpen, word(0)),
		"another driver":             opening("esx://192.0.2.1/"),
		"a driver with a socket":     opening("qemu:///system?socket=/run/other"),
		"a test driver's file":       opening("test:///etc/shadow"),
		"garbage":                    bytes.Repeat([]byte{0xff}, 64),
	}
}

// cookie is a migration's call with a definition to keep in its cookie.
func cookie(procedure uint32, target *Tunnel, keep string) []byte {
	body := append(word(3), param(paramXML, definition(vm, "web"))...)
	body = append(body, param(paramURI, target.DataURI())...)
	body = append(body, param(paramName, "web")...)
	body = append(body, text("<qemu-migration><name>web</name><uuid>"+vm+"</uuid>"+keep+"</qemu-migration>\x00")...)
	body = append(body, word(flagPaused|flagLive)...)
	if procedure == procFinish {
		body = append(body, word(0)...)
	}
	return call(procedure, body)
}

// The other programs that a libvirtd serves (remote_protocol.x, qemu_protocol.x,
// lxc_protocol.x, admin_protocol.x), and how many procedures none has reached.
var programs = map[uint32]uint32{remoteProgram: 500, 0x20008087: 20, 0x20008088: 20, 0x06900690: 40}

// TestCompromisedSourceReachesNothing tries, with the key of the source's agent
// and the right, all that is not this VM's migration: nothing of it reaches
// libvirt, the connection is closed, and it is written down.
func TestCompromisedSourceReachesNothing(t *testing.T) {
	p := newPair(t)
	p.in.DiskPaths = []string{"/disks/web.img"}
	libvirt := record(t, p.in.LibvirtSocket)
	var log bytes.Buffer
	p.target.Log = hclog.New(&hclog.LoggerOptions{Output: &log, JSONFormat: true})
	target := p.open(p.target, p.in)
	a := newAttacker(p, target)
	tried := 0
	try := func(what string, packet []byte) {
		t.Helper()
		tried++
		if got, err := a.says(libvirtChannel, packet); err != nil || len(got) > 0 {
			t.Errorf("%s: %d bytes came back, %v", what, len(got), err)
		}
	}
	for program, most := range programs {
		for procedure := range most + 1 {
			switch {
			case program == remoteProgram && (harmless[procedure] || procedure == procOpen || procedure == procPrepare || procedure == procFinish):
			default:
				try(fmt.Sprintf("program %#x, procedure %d", program, procedure), packet(program, procedure, typeCall, word(0)))
			}
		}
	}
	for kind := uint32(1); kind < 8; kind++ {
		try(fmt.Sprintf("packet of type %d", kind), packet(remoteProgram, procPrepare, kind, nil))
	}
	for what, packet := range attempts(target) {
		try(what, packet)
	}
	if got := libvirt.all(); len(got) > 0 {
		t.Errorf("%d bytes reached libvirt, procedure %d first", len(got), binary.BigEndian.Uint32(got[12:]))
	}
	for _, c := range []channel{diskChannel, 'X'} {
		tried++
		if got, err := a.says(c, []byte("hello")); err != nil || len(got) > 0 {
			t.Errorf("channel %q: %d bytes came back, %v", c, len(got), err)
		}
	}
	refusals := target.Refusals()
	if len(refusals) != tried {
		t.Errorf("%d attempts, %d written down", tried, len(refusals))
	}
	for _, r := range refusals {
		if r.VM != vm || r.Peer != "a" || r.Reason == "" || r.Remote == "" || r.At.IsZero() {
			t.Fatalf("written down: %+v", r)
		}
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(log.String(), `"event":"tunnel_refused"`); got != tried || !strings.Contains(log.String(), `"procedure":13,`) {
		t.Errorf("%d attempts, %d in the agent's log", tried, got)
	}
}

// TestFewConnectionsToLibvirt: each may have the target hold much, so there are few.
func TestFewConnectionsToLibvirt(t *testing.T) {
	p := newPair(t)
	record(t, p.in.LibvirtSocket)
	target := p.open(p.target, p.in)
	a := newAttacker(p, target)
	open := func() *tls.Conn {
		t.Helper()
		conn, err := tls.Dial("tcp", a.address, a.tls)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if err := writeOpening(conn, libvirtChannel, a.right); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	hungUp := func(conn *tls.Conn, within time.Duration) bool {
		_ = conn.SetReadDeadline(time.Now().Add(within))
		_, err := conn.Read(make([]byte, 1))
		var late net.Error
		return !errors.As(err, &late) || !late.Timeout()
	}
	var kept []*tls.Conn
	for range maxLibvirts {
		conn := open()
		if hungUp(conn, 100*time.Millisecond) {
			t.Fatalf("connection %d was refused", len(kept)+1)
		}
		kept = append(kept, conn)
	}
	if !hungUp(open(), 10*time.Second) {
		t.Error("one more is let in")
	}
	_ = kept[0].Close()
	eventually(t, "there is room again", func() bool { return !hungUp(open(), 100*time.Millisecond) })
}

// TestRightOfTheOtherKind has an offline right asked for a live migration.
func TestRightOfTheOtherKind(t *testing.T) {
	p := newPair(t)
	p.in.Offline = true
	echo(t, p.in.LibvirtSocket)
	target := p.open(p.target, p.in)
	a := newAttacker(p, target)
	for what, packet := range map[string][]byte{
		"live":                    prepareAt(target.DataURI(), vm, "web", flagPaused|flagLive),
		"offline and live":        prepareAt(target.DataURI(), vm, "web", flagOffline|flagPersist|flagLive),
		"offline, not to be kept": prepareAt(target.DataURI(), vm, "web", flagOffline),
		"offline and another's":   prepareAt(target.DataURI(), vm, "db", flagOffline|flagPersist),
	} {
		if got, err := a.says(libvirtChannel, packet); err != nil || len(got) > 0 {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	for _, c := range []channel{memoryChannel, diskChannel} {
		if got, err := a.says(c, []byte("x")); err != nil || len(got) > 0 {
			t.Errorf("%s: %q, %v", c, got, err)
		}
	}
	p.out.Address, p.out.Offline = target.Address(), true
	source := p.open(p.source, p.out)
	good := migration(procPrepare, flagOffline|flagPersist|flagPeer|flagUndefine, param(paramXML, definition(vm, "web")))
	if got, err := ask(t, source.layout.libvirt(), good); err != nil || !bytes.Equal(got, good) {
		t.Errorf("what the right is for: %q, %v", got, err)
	}
}

// TestDisksOfTheRight has libvirt asked for disks.
func TestDisksOfTheRight(t *testing.T) {
	g := quiet
	g.cfg.CopyDisks, g.disksURI = []string{"vda", "vdb"}, "unix:///run/debvisor/tunnel/x/io/nbd.sock"
	xml, uri := param(paramXML, definition(vm, "web")), param(paramDisksURI, g.disksURI)
	disk := func(name string) []byte { return param(paramDisks, name) }
	for name, c := range map[string]struct {
		packet []byte
		passes bool
	}{
		"both":           {migration(procPrepare, flagPaused|flagDisks, xml, atSocket, uri, disk("vda"), disk("vdb")), true},
		"one":            {migration(procPrepare, flagPaused|flagDisks|flagSynchronous, xml, atSocket, uri, disk("vdb")), true},
		"none":           {migration(procPrepare, flagPaused|flagDisks, xml, atSocket, uri), false},
		"another":        {migration(procPrepare, flagPaused|flagDisks, xml, atSocket, uri, disk("vdc")), false},
		"on a port":      {migration(procPrepare, flagPaused|flagDisks, xml, atSocket, disk("vda")), false},
		"another socket": {migration(procPrepare, flagPaused|flagDisks, xml, atSocket, disk("vda"), param(paramDisksURI, dataURI)), false},
		"on tcp":         {migration(procPrepare, flagPaused|flagDisks, xml, atSocket, disk("vda"), param(paramDisksURI, "tcp://0")), false},
		"with backing":   {migration(procPrepare, flagPaused|flagDisks|1<<7, xml, atSocket, uri, disk("vda")), false},
	} {
		if err := g.calls(io.Discard, bytes.NewReader(c.packet)); (err == nil) != c.passes {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDefinition compares: what is let in says what it is to say, once and plainly.
func FuzzDefinition(f *testing.F) {
	f.Add(definition(vm, "web"))
	f.Add("<domain><name>web</name><uuid>" + vm + "</uuid><devices><disk type='file'><source file='/x'/></disk></devices></domain>")
	g := quiet
	g.cfg.DiskPaths = []string{"/x"}
	f.Fuzz(func(t *testing.T, text string) {
		if g.checkDefinition([]byte(text)) == nil && (!strings.Contains(text, "web") || strings.Contains(text, "<!DOCTYPE")) {
			t.Errorf("let in: %q", text)
		}
		_ = g.checkCookie([]byte(text))
	})
}
