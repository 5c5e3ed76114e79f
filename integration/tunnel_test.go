package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
)

// An intruder is whoever has taken the source of a migration: it has the key of the source's agent and the migration's right,
// and speaks to the target's end of the tunnel as it likes.
type intruder struct {
	node    *lab.Node
	tls     *tls.Config
	right   string
	address string
	uuid    string
}

// intrude takes the source of a move that is under way.
func (m *mover) intrude() intruder {
	m.c.t.Helper()
	config, err := m.c.AgentTLS(m.from.Name)
	m.c.must(err)
	config.InsecureSkipVerify = true // an intruder does not care whom it harms
	found, err := filepath.Glob(m.from.Root("/run/debvisor/tunnel/*/config.json"))
	m.c.must(err)
	if len(found) != 1 {
		m.c.t.Fatalf("%s has the tunnels %v", m.from.Name, found)
	}
	raw, err := os.ReadFile(found[0])
	m.c.must(err)
	var tunnel struct{ RightID, Address, VMUUID string }
	m.c.must(json.Unmarshal(raw, &tunnel))
	return intruder{m.from, config, tunnel.RightID, tunnel.Address, tunnel.VMUUID}
}

// says sends bytes on a channel, and gives what comes back until the target hangs up.
func (i intruder) says(ctx context.Context, channel byte, packet []byte) ([]byte, error) {
	raw, err := i.node.DialContext(ctx, "tcp", i.address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, i.tls)
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(15 * time.Second))
	opening := append([]byte("dvt1"), channel, byte(len(i.right)))
	opening = append(opening, i.right...)
	if _, err := conn.Write(append(opening, packet...)); err != nil {
		return nil, err
	}
	got, err := io.ReadAll(conn)
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		return got, errors.New("the target does not hang up")
	}
	return got, nil
}

// rpc is a call of libvirt's.
func rpc(program, procedure uint32, body ...[]byte) []byte {
	joined := bytes.Join(body, nil)
	var out []byte
	for _, word := range []uint32{uint32(28 + len(joined)), program, 1, procedure, 0, 1, 0} {
		out = binary.BigEndian.AppendUint32(out, word)
	}
	return append(out, joined...)
}

func xdrWord(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func xdrText(s string) []byte {
	out := append(xdrWord(uint32(len(s))), s...)
	return append(out, make([]byte, -len(s)&3)...)
}

// prepares asks the target to take a VM in.
func prepares(definition, uri string, flags uint32) []byte {
	params := xdrWord(2)
	for _, p := range [][2]string{{"destination_xml", definition}, {"migrate_uri", uri}} {
		params = append(params, bytes.Join([][]byte{xdrText(p[0]), xdrWord(7), xdrText(p[1])}, nil)...)
	}
	return rpc(remoteProgram, 303, params, xdrText(""), xdrWord(flags))
}

const (
	remoteProgram = 0x20008086
	justPaused    = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 // as our agents ask: live, p2p, persistent, undefine, paused
)

// forbidden are all calls that are no part of a migration, and a migration's own calls in disguise.
func (i intruder) forbidden(name string) map[string][]byte {
	// Those that a migration makes: open, close, authentications, features, prepare, finish, (de)register for the end.
	needed := map[uint32]bool{1: true, 2: true, 60: true, 66: true, 303: true, 306: true, 360: true, 361: true}
	out := map[string][]byte{}
	for program, last := range map[uint32]uint32{remoteProgram: 480, 0x20008087: 10, 0x20008088: 10, 0x06900690: 30} {
		for procedure := uint32(0); procedure <= last; procedure++ {
			if program != remoteProgram || !needed[procedure] {
				out[fmt.Sprintf("program %#x procedure %d", program, procedure)] = rpc(program, procedure, xdrWord(0))
			}
		}
	}
	socket := "unix:///run/debvisor/tunnel/elsewhere/io/mig.sock"
	own := func(inside string) string {
		return "<domain type='qemu'><name>" + name + "</name><uuid>" + i.uuid + "</uuid>" + inside + "</domain>"
	}
	for what, definition := range map[string]string{
		"another VM":    "<domain type='qemu'><name>intruder</name><uuid>66666666-6666-4666-8666-666666666666</uuid></domain>",
		"another name":  "<domain type='qemu'><name>intruder</name><uuid>" + i.uuid + "</uuid></domain>",
		"a host's file": own("<devices><disk type='file'><source file='/etc/shadow'/><target dev='vda'/></disk></devices>"),
		"QEMU's arguments": own("<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>" +
			"<q:arg value='-chardev'/></q:commandline>"),
		"root's label": own("<seclabel type='static' model='dac'><label>0:0</label></seclabel>"),
	} {
		out[what] = prepares(definition, socket, justPaused)
	}
	out["another socket"] = prepares(own(""), socket, justPaused)
	out["a port"] = prepares(own(""), "tcp:0.0.0.0:49200", justPaused)
	for what, flags := range map[string]uint32{
		"not paused": justPaused &^ (1 << 5), "unsafe": justPaused | 1<<9, "offline": justPaused&^1 | 1<<10, "post-copy": justPaused | 1<<15,
	} {
		out[what] = prepares(own(""), socket, flags)
	}
	out["another driver"] = rpc(remoteProgram, 1, xdrWord(1), xdrText("test:///default"), xdrWord(0))
	return out
}

// TestCompromisedSource has the source's key tell the target's libvirtd everything but what a migration of that VM needs, while
// it is under way: nothing is answered, nothing changes, all is in the log of the target's agent, and the migration goes on.
func TestCompromisedSource(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	id := g.begin(a)
	g.copying()
	i := g.intrude()
	var before map[string]lab.Domain
	c.eventually(20*time.Second, "the target has the copy that is to come", func() (err error) {
		before, err = g.to.Domains()
		if _, has := before[g.UUID]; err == nil && !has {
			err = fmt.Errorf("it has %v", before)
		}
		return err
	})
	log := c.mark(g.to.Agent.LogFile())

	attempts := i.forbidden(g.Name)
	ctx := c.within(time.Minute)
	var group sync.WaitGroup
	slots := make(chan struct{}, 2) // a source has few connections to libvirt, and more are turned away unheard
	for what, packet := range attempts {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if got, err := i.says(ctx, 'L', packet); err != nil || len(got) > 0 {
				t.Errorf("%s: %d bytes came back, %v", what, len(got), err)
			}
		})
	}
	group.Wait()
	if got, err := i.says(ctx, 'D', []byte("NBDMAGIC")); err != nil || len(got) > 0 {
		t.Errorf("disks that are not to come: %d bytes came back, %v", len(got), err)
	}
	after, err := g.to.Domains()
	c.must(err)
	if !reflect.DeepEqual(before, after) {
		t.Errorf("the target had %v, and has %v", before, after)
	}
	c.eventually(20*time.Second, "the agent's log has every attempt", func() error {
		lines := log.lines("tunnel_refused", g.UUID, g.from.Name)
		if len(lines) != len(attempts)+1 {
			return fmt.Errorf("%d of %d", len(lines), len(attempts)+1)
		}
		return nil
	})
	if len(log.lines("tunnel_refused", `"procedure":13,`)) == 0 && len(log.lines("tunnel_refused", "procedure=13 ")) == 0 {
		t.Error("the log does not tell the procedure")
	}
	leader, err := c.Leader(c.within(10 * time.Second))
	c.must(err)
	c.log(leader.Audit()).says("permission_denied", "TUNNEL_REFUSED", "agent:"+g.from.Name, id)
	if active, err := g.from.Migrating(g.UUID); err != nil || !active {
		t.Errorf("the migration has ended meanwhile: %v", err)
	}
	c.must(g.from.SetMigrateSpeed(g.UUID, full))
	c.succeeded(time.Minute, a, id)
	g.arrived()
}

// TestAgentsReplacedWhileCopying kills the source's agent and ends the target's in the middle of a copy, and starts both again
// from programs at other paths, as an upgrade does: the migration ends well in the tunnel that it began in.
func TestAgentsReplacedWhileCopying(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	id := g.begin(a)
	g.copying()
	was := c.tunnelProcesses()
	if len(was) != 2 {
		t.Fatalf("the tunnel's processes are %v", was)
	}
	c.must(g.from.Agent.Kill())
	c.must(g.to.Agent.Process.Terminate(c.within(20 * time.Second)))
	raw, err := os.ReadFile(c.Program("debvisor-agent"))
	c.must(err)
	for _, n := range c.Nodes {
		upgraded := filepath.Join(c.Dir, "upgraded-"+n.Name, "debvisor-agent")
		c.must(os.MkdirAll(filepath.Dir(upgraded), 0o755))
		c.must(os.WriteFile(upgraded, raw, 0o755))
		n.Agent.Program = upgraded
		t.Cleanup(func() { n.Agent.Program = "" })
		c.must(n.Agent.Start())
	}
	c.must(c.whole(c.within(time.Minute)))
	if active, err := g.from.Migrating(g.UUID); err != nil || !active {
		t.Fatalf("the migration did not outlive the agents: %v", err)
	}
	if now := c.tunnelProcesses(); !reflect.DeepEqual(was, now) {
		t.Errorf("the tunnel's processes were %v and are %v", was, now)
	}
	c.must(g.from.SetMigrateSpeed(g.UUID, full))
	op := c.succeeded(time.Minute, a, id)
	g.arrived()
	if n := g.starts(g.to); n == 0 || strings.Contains(op.String(), "attempt: 2") {
		t.Errorf("it took another attempt: %v", op)
	}
}

// tunnelProcesses are the pids of all that carries migrations, by node.
func (c *cluster) tunnelProcesses() map[string]int {
	c.t.Helper()
	out := map[string]int{}
	for _, n := range c.Nodes {
		all, err := tunnels(n)
		c.must(err)
		for _, t := range all {
			out[n.Name] = t.Pid
		}
	}
	return out
}
