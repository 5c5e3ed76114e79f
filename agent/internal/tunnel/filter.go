package tunnel

import (
	"bytes"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// libvirt's RPC (src/rpc/virnetprotocol.x, src/remote/remote_protocol.x):
// every packet begins with its length, program, version, procedure, type,
// serial and status, each 32 bits.
const (
	packetHeader    = 28
	maxPacket       = 32 << 20
	remoteProgram   = 0x20008086
	keepaliveProg   = 0x6b656570
	typeCall        = 0
	typeReply       = 1
	procOpen        = 1   // CONNECT_OPEN
	procPrepare     = 303 // DOMAIN_MIGRATE_PREPARE3_PARAMS
	procFinish      = 306 // DOMAIN_MIGRATE_FINISH3_PARAMS
	flagPaused      = 1 << 5
	paramXML        = "destination_xml"
	paramName       = "destination_name"
	paramURI        = "migrate_uri"
	typedString     = 7
	maxTypedParams  = 64
	maxTypedNameLen = 80
)

// flagsRefused would have the copy run before it is let (post-copy starts it
// though it is to arrive paused), be made without its memory (offline) or skip
// libvirt's own checks (unsafe).
const (
	flagUnsafe   = 1 << 9
	flagsRefused = flagUnsafe | 1<<10 | 1<<15 | 1<<19
)

// hypervisorURI is the only driver of the target's libvirtd that may be opened:
// others would dial out, or read files, at the source's wish.
const hypervisorURI = "qemu:///system"

// harmless are the procedures that a migrating libvirtd calls besides: close,
// supports feature, list of authentications, (un)register the close callback.
var harmless = map[uint32]bool{2: true, 60: true, 66: true, 360: true, 361: true}

// guard lets pass what a migration of one VM needs.
type guard struct {
	cfg Config
	// dataURI and disksURI are the only places where QEMU may listen.
	dataURI, disksURI string
	// prepare is called before libvirt is asked to prepare for the VM, and
	// with false when it has answered.
	prepare func(pending bool) error
}

// calls passes whole packets on to libvirt, and ends with an error at the first
// that has no business here.
func (g guard) calls(dst io.Writer, src io.Reader) error {
	return packets(dst, src, func(packet []byte) error {
		if err := g.check(packet); err != nil {
			return err
		}
		if isPrepare(packet, typeCall) {
			return g.prepare(true)
		}
		return nil
	})
}

// answers passes libvirt's packets back.
func (g guard) answers(dst io.Writer, src io.Reader) error {
	return packets(dst, src, func(packet []byte) error {
		if isPrepare(packet, typeReply) {
			return g.prepare(false)
		}
		return nil
	})
}

func isPrepare(packet []byte, kind uint32) bool {
	return binary.BigEndian.Uint32(packet[4:]) == remoteProgram && binary.BigEndian.Uint32(packet[12:]) == procPrepare &&
		binary.BigEndian.Uint32(packet[16:]) == kind
}

// packets copies libvirt's packets, each after see has seen it.
func packets(dst io.Writer, src io.Reader, see func(packet []byte) error) error {
	var packet bytes.Buffer
	for {
		packet.Reset()
		var length [4]byte
		if _, err := io.ReadFull(src, length[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(length[:])
		if n < packetHeader || n > maxPacket {
			return fmt.Errorf("libvirt packet of %d bytes", n)
		}
		packet.Write(length[:])
		if _, err := io.CopyN(&packet, src, int64(n)-4); err != nil {
			return err
		}
		if err := see(packet.Bytes()); err != nil {
			return err
		}
		if _, err := dst.Write(packet.Bytes()); err != nil {
			return err
		}
	}
}

func (g guard) check(packet []byte) error {
	program := binary.BigEndian.Uint32(packet[4:])
	procedure := binary.BigEndian.Uint32(packet[12:])
	kind := binary.BigEndian.Uint32(packet[16:])
	switch {
	case program == keepaliveProg:
		return nil
	case program != remoteProgram || kind != typeCall:
		return fmt.Errorf("libvirt program %#x, packet type %d is not let in", program, kind)
	case harmless[procedure]:
		return nil
	case procedure == procOpen:
		return checkOpen(packet[packetHeader:])
	case procedure == procPrepare || procedure == procFinish:
		return g.checkMigration(procedure, packet[packetHeader:])
	default:
		return fmt.Errorf("libvirt procedure %d is not let in", procedure)
	}
}

func checkOpen(body []byte) error {
	d := decoder{rest: body}
	if present := d.uint32(); d.err == nil && present != 1 {
		return errors.New("opening libvirt's default driver is not let in")
	}
	name := string(d.opaque())
	switch {
	case d.err != nil:
		return fmt.Errorf("opening a driver: %w", d.err)
	case name != hypervisorURI:
		return fmt.Errorf("opening %.80q is not let in", name)
	default:
		return nil
	}
}

func (g guard) checkMigration(procedure uint32, body []byte) error {
	d := decoder{rest: body}
	params := d.params()
	d.opaque() // the cookie
	flags := d.uint32()
	if d.err != nil {
		return fmt.Errorf("libvirt procedure %d: %w", procedure, d.err)
	}
	definition, has := params[paramXML]
	switch {
	case has:
		if err := g.checkDefinition(definition); err != nil {
			return err
		}
	case procedure == procPrepare || params[paramName] != g.cfg.VMName:
		return fmt.Errorf("libvirt procedure %d does not say for which VM", procedure)
	}
	if name, has := params[paramName]; has && name != g.cfg.VMName {
		return fmt.Errorf("VM %q is not let in under another name, %q", g.cfg.VMName, name)
	}
	if procedure == procPrepare && !strings.HasPrefix(params[paramURI], "unix:") {
		return fmt.Errorf("QEMU is not to listen at %.80q: only at a unix socket", params[paramURI])
	}
	if flags&flagPaused == 0 || flags&flagsRefused != 0 {
		return fmt.Errorf("migration flags %#x are not let in", flags)
	}
	return nil
}

func (g guard) checkDefinition(definition string) error {
	var domain struct {
		XMLName xml.Name
		UUID    []element `xml:"uuid"`
		Name    []element `xml:"name"`
	}
	if err := xml.Unmarshal([]byte(definition), &domain); err != nil {
		return fmt.Errorf("reading the definition: %w", err)
	}
	if domain.XMLName != (xml.Name{Local: "domain"}) || !isOnly(domain.UUID, "uuid", g.cfg.VMUUID) || !isOnly(domain.Name, "name", g.cfg.VMName) {
		return fmt.Errorf("VM %v is not let in: the right is for %s", domain.UUID, g.cfg.VMUUID)
	}
	return nil
}

// element is what libvirt takes for a value: it looks at no name space but none,
// and counts the text of what is inside as well.
type element struct {
	XMLName xml.Name
	Text    string     `xml:",chardata"`
	Inside  []struct{} `xml:",any"`
}

// isOnly tells whether there is one element, which both readers take for want.
func isOnly(all []element, name, want string) bool {
	return len(all) == 1 && all[0].XMLName == (xml.Name{Local: name}) && all[0].Text == want && len(all[0].Inside) == 0
}

// decoder reads XDR; after the first error it reads nothing.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) take(n uint32) []byte {
	if d.err == nil && uint64(n) > uint64(len(d.rest)) {
		d.err = errors.New("packet is cut short")
	}
	if d.err != nil {
		return nil
	}
	out := d.rest[:n]
	d.rest = d.rest[n:]
	return out
}

func (d *decoder) uint32() uint32 {
	b := d.take(4)
	if b == nil {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func (d *decoder) opaque() []byte {
	n := d.uint32()
	out := d.take(n)
	d.take(-n & 3) // padded to 4 bytes
	return out
}

// params reads typed parameters and gives the strings among them. A name that
// comes twice is an error: the two readers might take different ones.
func (d *decoder) params() map[string]string {
	out := map[string]string{}
	seen := map[string]bool{}
	n := d.uint32()
	if n > maxTypedParams {
		d.err = fmt.Errorf("%d parameters", n)
	}
	for i := uint32(0); i < n && d.err == nil; i++ {
		name := string(d.opaque())
		if len(name) > maxTypedNameLen || seen[name] && (name == paramXML || name == paramName) {
			d.err = fmt.Errorf("parameter %.80q is too long or comes twice", name)
			return out
		}
		seen[name] = true
		switch kind := d.uint32(); {
		case d.err != nil:
		case kind == 1, kind == 2, kind == 6: // int, unsigned int, boolean
			d.take(4)
		case kind == 3, kind == 4, kind == 5: // long long, unsigned long long, double
			d.take(8)
		case kind == typedString:
			out[name] = string(d.opaque())
		default:
			d.err = fmt.Errorf("parameter of type %d", kind)
		}
	}
	return out
}
