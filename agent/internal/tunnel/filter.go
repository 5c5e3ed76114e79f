package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// libvirt's RPC (src/rpc/virnetprotocol.x, src/remote/remote_protocol.x):
// every packet begins with its length, program, version, procedure, type,
// serial and status, each 32 bits.
const (
	packetHeader  = 28
	maxPacket     = 32 << 20
	remoteProgram = 0x20008086
	keepaliveProg = 0x6b656570
	typeCall      = 0
	typeReply     = 1
	procOpen      = 1   // CONNECT_OPEN
	procPrepare   = 303 // DOMAIN_MIGRATE_PREPARE3_PARAMS
	procFinish    = 306 // DOMAIN_MIGRATE_FINISH3_PARAMS
	paramXML      = "destination_xml"
	paramName     = "destination_name"
	paramURI      = "migrate_uri"
	paramDisks    = "migrate_disks"
	paramDisksURI = "disks_uri"
)

// Flags of migrations (VIR_MIGRATE_*).
const (
	flagLive        = 1 << 0
	flagPeer        = 1 << 1
	flagPersist     = 1 << 3
	flagUndefine    = 1 << 4
	flagPaused      = 1 << 5
	flagDisks       = 1 << 6 // NON_SHARED_DISK
	flagProtect     = 1 << 8 // CHANGE_PROTECTION, which libvirt adds
	flagUnsafe      = 1 << 9
	flagOffline     = 1 << 10
	flagAbort       = 1 << 12 // ABORT_ON_ERROR
	flagConverge    = 1 << 13
	flagParallel    = 1 << 17
	flagSynchronous = 1 << 18 // NON_SHARED_SYNCHRONOUS_WRITES

	// Others would have the copy run before it is let (post-copy starts it though
	// it is to arrive paused), skip libvirt's own checks (unsafe), or have QEMU
	// listen or read where it need not.
	flagsAny  = flagPeer | flagPersist | flagUndefine | flagPaused | flagProtect | flagAbort
	flagsLive = flagsAny | flagLive | flagConverge | flagParallel
	flagsCopy = flagDisks | flagSynchronous
)

// migrationParams are those that libvirt 9 sends for what package hypervisor
// asks for. Missing are what would have QEMU listen on a network.
var migrationParams = map[string]bool{
	paramXML: true, paramName: true, paramURI: true, paramDisks: true, paramDisksURI: true, "bandwidth": true,
	"bandwidth.postcopy":    true, // goes along with a limit, and has no effect without post-copy
	"auto_converge.initial": true, "auto_converge.increment": true, "parallel.connections": true,
}

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
			return &refusal{binary.BigEndian.Uint32(packet[4:]), binary.BigEndian.Uint32(packet[12:]), err}
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

// refusal is why a packet is not let in.
type refusal struct {
	program, procedure uint32
	why                error
}

func (r *refusal) Error() string { return r.why.Error() }
func (r *refusal) Unwrap() error { return r.why }

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
			return &refusal{why: fmt.Errorf("libvirt packet of %d bytes", n)}
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
		if err := g.checkMigration(procedure, packet[packetHeader:]); err != nil {
			return fmt.Errorf("libvirt procedure %d: %w", procedure, err)
		}
		return nil
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
	d.uint32() // flags
	switch err := d.end(); {
	case err != nil:
		return fmt.Errorf("opening a driver: %w", err)
	case name != hypervisorURI:
		return fmt.Errorf("opening %.80q is not let in", name)
	default:
		return nil
	}
}

// checkMigration reads remote_domain_migrate_{prepare3,finish3}_params_args: both
// begin with parameters, cookie and flags.
func (g guard) checkMigration(procedure uint32, body []byte) error {
	d := decoder{rest: body}
	params := d.params(migrationParams, paramDisks)
	cookie := d.opaque()
	flags := d.uint32()
	if procedure == procFinish {
		d.uint32() // whether the source failed
	}
	if err := d.end(); err != nil {
		return err
	}
	if err := g.checkVM(procedure, params); err != nil {
		return err
	}
	if err := g.checkCookie(cookie); err != nil {
		return err
	}
	if err := g.checkFlags(flags); err != nil {
		return err
	}
	return g.checkPlaces(procedure, flags, params)
}

// checkVM makes sure that the call is about the right's VM.
func (g guard) checkVM(procedure uint32, params map[string][]string) error {
	name, named := first(params[paramName])
	if named && name != g.cfg.VMName {
		return fmt.Errorf("VM %q is not let in as another, %.80q", g.cfg.VMName, name)
	}
	definition, has := first(params[paramXML])
	if has {
		return g.checkDefinition([]byte(definition))
	}
	if procedure == procPrepare || !named {
		return errors.New("it does not say for which VM")
	}
	return nil
}

func (g guard) checkFlags(flags uint32) error {
	may, must := uint32(flagsLive), uint32(flagPaused)
	if g.cfg.Offline {
		may, must = flagsAny|flagOffline, flagOffline|flagPersist
	} else if len(g.cfg.CopyDisks) > 0 {
		may |= flagsCopy
	}
	if flags&must != must || flags&^may != 0 {
		return fmt.Errorf("migration flags %#x are not let in", flags)
	}
	return nil
}

// checkPlaces makes sure that QEMU listens at the tunnel's sockets only, and for
// no disk that the right does not have.
func (g guard) checkPlaces(procedure, flags uint32, params map[string][]string) error {
	uri, has := first(params[paramURI])
	if has && uri != g.dataURI || !has && procedure == procPrepare && !g.cfg.Offline {
		return fmt.Errorf("QEMU is not to listen at %.80q: only at %s", uri, g.dataURI)
	}
	uri, has = first(params[paramDisksURI])
	if has && uri != g.disksURI || !has && procedure == procPrepare && flags&flagDisks != 0 {
		return fmt.Errorf("QEMU is not to listen for disks at %.80q: only at %s", uri, g.disksURI)
	}
	disks := params[paramDisks]
	if procedure == procPrepare && flags&flagDisks != 0 && len(disks) == 0 {
		return errors.New("it does not say which disks")
	}
	for _, disk := range disks {
		if !slices.Contains(g.cfg.CopyDisks, disk) {
			return fmt.Errorf("disk %.80q is not let in", disk)
		}
	}
	return nil
}

func first(values []string) (string, bool) {
	if len(values) == 0 {
		return "", false
	}
	return values[0], true
}
