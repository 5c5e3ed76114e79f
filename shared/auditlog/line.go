// Package auditlog is the format of the audit log, and the proof that a log is
// whole: replicas write it, hvctl checks copies of it. Each line is a JSON object
// that begins with its number (seq, from 1) and the SHA-256 of the line before it
// (prev, hex), so that none can be changed, dropped, added or moved without all
// that follow telling so; that the end is the end, only a head kept elsewhere
// can tell.
package auditlog

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// MaxLine is more than any line of a log has, bytes.
const MaxLine = 64 << 10

// Genesis is the prev of a chain's first line.
var Genesis Hash

// Hash is the SHA-256 of a line without its line feed.
type Hash [sha256.Size]byte

// HashOf hashes a line, which has no line feed.
func HashOf(line []byte) Hash { return sha256.Sum256(line) }

// String gives it in hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash reads what String gives.
func ParseHash(text string) (Hash, error) {
	var h Hash
	if len(text) != hex.EncodedLen(len(h)) || strings.ToLower(text) != text {
		return Hash{}, fmt.Errorf("%q is no hash; expected 64 hexadecimal digits in lower case", text)
	}
	if _, err := hex.Decode(h[:], []byte(text)); err != nil {
		return Hash{}, fmt.Errorf("%q is no hash; expected 64 hexadecimal digits in lower case", text)
	}
	return h, nil
}

// Head is the end of a chain; its zero value is that of a chain without lines.
type Head struct {
	Sequence uint64
	Hash     Hash
}

// The kinds of lines by which a log says of itself that something is missing.
const (
	// EventsLost is that events came while the log could not be written, and
	// more than memory holds.
	EventsLost = "audit_events_lost"
	// LogLost is that etcd knows of lines that the log does not have.
	LogLost = "audit_log_lost"
)

// Line is one line. Fields that it does not have are empty.
type Line struct {
	Seq        uint64    `json:"seq"`
	Prev       string    `json:"prev"`
	Replica    string    `json:"replica"`
	Time       time.Time `json:"time"`
	Event      string    `json:"event"`
	TraceID    string    `json:"trace_id"`
	Principal  string    `json:"principal"`
	Credential string    `json:"credential"`
	Peer       string    `json:"peer"`
	Method     string    `json:"method"`
	RequestID  string    `json:"request_id"`
	Args       string    `json:"args"`
	Code       string    `json:"code"`
	Error      string    `json:"error"`
	Reason     string    `json:"reason"`
	Operation  string    `json:"operation"`
	DurationMS float64   `json:"duration_ms"`
}

const (
	seqField  = `{"seq":`
	prevField = `,"prev":"`
	nextField = `","replica":"`
)

// AppendLink begins a line: its number, and what ties it to the line before.
// The caller adds the rest, from the field replica on.
func AppendLink(b []byte, seq uint64, prev Hash) []byte {
	b = strconv.AppendUint(append(b, seqField...), seq, 10)
	b = hex.AppendEncode(append(b, prevField...), prev[:])
	return append(b, '"', ',')
}

// link reads the number of a line and its prev: exactly as AppendLink writes it.
func link(line []byte) (seq uint64, prev Hash, err error) {
	rest, ok := bytes.CutPrefix(line, []byte(seqField))
	number, rest, more := bytes.Cut(rest, []byte(prevField))
	if !ok || !more || len(number) == 0 || len(number) > 20 || number[0] == '0' {
		return 0, Hash{}, errors.New(`it does not begin with "seq" and "prev"`)
	}
	for _, digit := range number {
		if digit < '0' || digit > '9' {
			return 0, Hash{}, fmt.Errorf("seq %q is no number", number)
		}
	}
	if seq, err = strconv.ParseUint(string(number), 10, 64); err != nil {
		return 0, Hash{}, fmt.Errorf("seq %q is no number", number)
	}
	size := hex.EncodedLen(len(prev))
	if len(rest) < size || !bytes.HasPrefix(rest[size:], []byte(nextField)) {
		return 0, Hash{}, errors.New("prev is no hash, or no replica follows it")
	}
	prev, err = ParseHash(string(rest[:size]))
	return seq, prev, err
}

// Parse reads a line, which has no line feed.
func Parse(line []byte) (Line, error) {
	var l Line
	if len(line) > MaxLine {
		return l, fmt.Errorf("it has more than %d bytes", MaxLine)
	}
	seq, prev, err := link(line)
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return Line{}, fmt.Errorf("it is no line of an audit log: %w", err)
	}
	if l.Seq != seq || l.Prev != prev.String() {
		return Line{}, errors.New("it has seq or prev twice")
	}
	return l, nil
}

// Open opens a file of a log for reading, also one that gzip has packed: what is
// wrong with the packing is an error of reading (see Damaged).
func Open(name string) (io.ReadCloser, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("opening a file of the audit log: %w", err)
	}
	if !strings.HasSuffix(name, ".gz") {
		return f, nil
	}
	return &packed{file: f}, nil
}

// Damaged tells whether an error of reading is that a packed file was changed,
// or is not all there.
func Damaged(err error) bool {
	var corrupt flate.CorruptInputError
	return errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &corrupt)
}

// packed is a file that is unpacked as it is read.
type packed struct {
	file     *os.File
	unpacked *gzip.Reader
}

// Read reads what was packed.
func (p *packed) Read(b []byte) (int, error) {
	if p.unpacked == nil {
		unpacked, err := gzip.NewReader(p.file)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // gzip writes some bytes even of nothing
		}
		if err != nil {
			return 0, unpacking(p.file.Name(), err)
		}
		p.unpacked = unpacked
	}
	n, err := p.unpacked.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = unpacking(p.file.Name(), err)
	}
	return n, err
}

func unpacking(name string, err error) error { return fmt.Errorf("unpacking %s: %w", name, err) }

// Close closes the file.
func (p *packed) Close() error { return p.file.Close() }
