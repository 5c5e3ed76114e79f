package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// decoder reads XDR (RFC 4506); after the first error it reads nothing.
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

// end is the packet's: more than libvirt would read is an error.
func (d *decoder) end() error {
	if d.err == nil && len(d.rest) > 0 {
		d.err = fmt.Errorf("%d bytes too many", len(d.rest))
	}
	return d.err
}

// Kinds of typed parameters (remote_protocol.x, VIR_TYPED_PARAM_*).
const (
	typedInt     = 1
	typedUint    = 2
	typedLLong   = 3
	typedULLong  = 4
	typedDouble  = 5
	typedBoolean = 6
	typedString  = 7
	maxTyped     = 256
	maxTypedName = 80
)

// params reads typed parameters: the strings among them by name, in order. A
// name may come more than once only if it is in many, as the two readers might
// take different ones; and only names in known are read at all.
func (d *decoder) params(known map[string]bool, many string) map[string][]string {
	out := map[string][]string{}
	seen := map[string]bool{}
	n := d.uint32()
	if n > maxTyped {
		d.err = fmt.Errorf("%d parameters", n)
	}
	for i := uint32(0); i < n && d.err == nil; i++ {
		name := string(d.opaque())
		if d.err != nil {
			break
		}
		if len(name) > maxTypedName || !known[name] || seen[name] && name != many {
			d.err = fmt.Errorf("parameter %.80q is not let in, or comes twice", name)
			break
		}
		seen[name] = true
		switch kind := d.uint32(); {
		case d.err != nil:
		case kind == typedInt, kind == typedUint, kind == typedBoolean:
			d.take(4)
		case kind == typedLLong, kind == typedULLong, kind == typedDouble:
			d.take(8)
		case kind == typedString:
			out[name] = append(out[name], string(d.opaque()))
		default:
			d.err = fmt.Errorf("parameter of type %d", kind)
		}
	}
	return out
}
