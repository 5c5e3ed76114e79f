package tunnel

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
)

// packet makes a libvirt packet.
func packet(program, procedure, kind uint32, body []byte) []byte {
	words := []uint32{uint32(packetHeader + len(body)), program, 1, procedure, kind, 7, 0}
	var out bytes.Buffer
	for _, w := range words {
		_ = binary.Write(&out, binary.BigEndian, w)
	}
	out.Write(body)
	return out.Bytes()
}

func call(procedure uint32, body []byte) []byte {
	return packet(remoteProgram, procedure, typeCall, body)
}

func word(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func text(s string) []byte {
	out := append(word(uint32(len(s))), s...)
	return append(out, make([]byte, -len(s)&3)...)
}

// param is one typed parameter that is a string.
func param(name, value string) []byte {
	return bytes.Join([][]byte{text(name), word(typedString), text(value)}, nil)
}

func migration(procedure, flags uint32, params ...[]byte) []byte {
	body := append(word(uint32(len(params)+1)), text("bandwidth")...)
	body = append(body, word(4)...)
	body = append(body, 0, 0, 0, 0, 0, 0, 0, 9)
	body = append(body, bytes.Join(params, nil)...)
	body = append(body, text("<qemu-migration/>\x00")...)
	body = append(body, word(flags)...)
	if procedure == procFinish {
		body = append(body, word(0)...) // not cancelled
	}
	return call(procedure, body)
}

func definition(uuid, name string) string {
	return "<domain type='qemu'><name>" + name + "</name><uuid>" + uuid + "</uuid><devices/></domain>"
}

// atSocket has QEMU listen where the tunnel ends.
var atSocket = param(paramURI, dataURI)

const dataURI = "unix:///run/debvisor/tunnel/x/io/mig.sock"

// opening opens a driver of libvirt.
func opening(uri string) []byte {
	return call(procOpen, bytes.Join([][]byte{word(1), text(uri), word(0)}, nil))
}

func prepare(uuid, name string, flags uint32) []byte { return prepareAt(dataURI, uuid, name, flags) }

func prepareAt(uri, uuid, name string, flags uint32) []byte {
	return migration(procPrepare, flags, param(paramXML, definition(uuid, name)), param(paramURI, uri))
}

// quiet is a guard that tells nobody of a pending call.
var quiet = guard{cfg: Config{VMUUID: vm, VMName: "web"}, dataURI: dataURI, prepare: func(bool) error { return nil }}

func TestPendingCallIsNoted(t *testing.T) {
	var noted []bool
	g := quiet
	g.prepare = func(pending bool) error {
		noted = append(noted, pending)
		return nil
	}
	for _, c := range []struct {
		copy   copying
		packet []byte
	}{
		{g.calls, call(60, word(4))},
		{g.calls, prepare(vm, "web", flagPaused)},
		{g.answers, packet(keepaliveProg, 2, 2, nil)},
		{g.answers, packet(remoteProgram, procFinish, typeReply, nil)},
		{g.answers, packet(remoteProgram, procPrepare, typeReply, text("<cookie/>"))},
	} {
		if err := c.copy(io.Discard, bytes.NewReader(c.packet)); err != nil {
			t.Fatal(err)
		}
	}
	if len(noted) != 2 || !noted[0] || noted[1] {
		t.Errorf("noted %v, want a call and its answer", noted)
	}
}

func TestFilter(t *testing.T) {
	const other = "aaaaaaaa-2222-3333-4444-555555555555"
	xml := param(paramXML, definition(vm, "web"))
	for name, c := range map[string]struct {
		packet []byte
		why    string // empty: passes
	}{
		"keepalive":                  {packet(keepaliveProg, 1, 2, nil), ""},
		"supports feature":           {call(60, word(4)), ""},
		"prepare":                    {migration(procPrepare, 0x3b, xml, atSocket), ""},
		"prepare under its own name": {migration(procPrepare, 0x3b, xml, atSocket, param(paramName, "web")), ""},
		"finish by definition":       {migration(procFinish, 0x3b, xml), ""},
		"finish by name":             {migration(procFinish, 0x3b, param(paramName, "web")), ""},
		"finish of another":          {migration(procFinish, 0x3b, param(paramName, "db")), "as another"},
		"finish of nothing":          {migration(procFinish, 0x3b), "does not say"},
		"prepare by name only":       {migration(procPrepare, 0x3b, param(paramName, "web")), "does not say"},
		"prepare of another":         {migration(procPrepare, 0x3b, param(paramXML, definition(other, "web"))), "not let in"},
		"two definitions":            {migration(procPrepare, 0x3b, xml, param(paramXML, definition(other, "web"))), "comes twice"},
		"two ids": {migration(procPrepare, 0x3b, param(paramXML,
			"<domain><name>web</name><uuid>"+vm+"</uuid><uuid>"+other+"</uuid></domain>")), "not let in"},
		"renamed":             {migration(procPrepare, 0x3b, xml, param(paramName, "db")), "as another"},
		"to run at once":      {migration(procPrepare, 0x1b, xml, atSocket), "flags"},
		"unsafe":              {migration(procPrepare, 0x23b, xml, atSocket), "flags"},
		"offline":             {migration(procPrepare, 0x43b, xml, atSocket), "flags"},
		"post-copy":           {migration(procPrepare, 0x803b, xml, atSocket), "flags"},
		"post-copy's finish":  {migration(procFinish, 0x803b, xml), "flags"},
		"on a port":           {migration(procPrepare, 0x3b, xml), "only at"},
		"on a port by name":   {migration(procPrepare, 0x3b, xml, param(paramURI, "tcp://0.0.0.0:49152")), "only at"},
		"open":                {opening("qemu:///system"), ""},
		"open another driver": {opening("esx://192.0.2.1/"), "not let in"},
		"open the default":    {call(procOpen, word(0)), "not let in"},
		"open, cut short":     {call(procOpen, word(1)), "cut short"},
		"an id of another name space": {migration(procPrepare, 0x3b, atSocket, param(paramXML,
			"<domain xmlns:x='x:x'><name>web</name><x:uuid>"+vm+"</x:uuid></domain>")), "not let in"},
		"a name space for all": {migration(procPrepare, 0x3b, atSocket, param(paramXML,
			"<domain xmlns='x:x'><name>web</name><uuid>"+vm+"</uuid></domain>")), "not let in"},
		"more of a name": {migration(procPrepare, 0x3b, atSocket, param(paramXML,
			"<domain><name>web<b>2</b></name><uuid>"+vm+"</uuid></domain>")), "not let in"},
		"create XML":        {call(10, text("<domain/>")), "procedure 10"},
		"destroy":           {call(12, text("x")), "procedure 12"},
		"QEMU monitor":      {packet(0x20008087, 1, 0, nil), "program"},
		"a stream":          {packet(remoteProgram, 1, 3, nil), "packet type"},
		"cut short":         {call(procPrepare, append(word(5), text("bandwidth")...)), "cut short"},
		"endless":           {call(procPrepare, word(1<<31)), "parameters"},
		"length of nothing": {word(4), "4 bytes"},
		"length of a lie":   {word(1 << 31), "bytes"},
	} {
		var out bytes.Buffer
		err := quiet.calls(&out, bytes.NewReader(c.packet))
		switch {
		case c.why == "" && (err != nil || !bytes.Equal(out.Bytes(), c.packet)):
			t.Errorf("%s: %v, %d of %d bytes passed", name, err, out.Len(), len(c.packet))
		case c.why != "" && (err == nil || !strings.Contains(err.Error(), c.why) || out.Len() > 0):
			t.Errorf("%s: %v, want %q and nothing passed (%d bytes did)", name, err, c.why, out.Len())
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add(prepare(vm, "web", flagPaused))
	f.Add(call(60, word(4)))
	f.Fuzz(func(_ *testing.T, data []byte) {
		_ = quiet.calls(io.Discard, bytes.NewReader(data))
	})
}
