package audit

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// DefaultSyslog is where the local syslog listens.
const DefaultSyslog = "/dev/log"

// syslogTimeout is how long it may take all lines at hand.
const syslogTimeout = 250 * time.Millisecond

// syslogPriority is facility authpriv (10), severity notice (5).
const syslogPriority = 10<<3 | 5

// syslog is the local syslog, by its datagram socket; empty: there is none.
type syslog string

// send hands lines over, each a message of its own, and tells how many bytes of
// them it took.
func (s syslog) send(lines []byte) (n int, err error) {
	if s == "" {
		return 0, errors.New("there is no syslog to turn to")
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: string(s), Net: "unixgram"})
	if err != nil {
		return 0, fmt.Errorf("turning to syslog: %w", err)
	}
	defer func() { _ = conn.Close() }() // each message was taken or refused
	if err := conn.SetWriteDeadline(time.Now().Add(syslogTimeout)); err != nil {
		return 0, fmt.Errorf("turning to syslog: %w", err)
	}
	head := fmt.Appendf(nil, "<%d>%s debvisor-audit[%d]: ", syslogPriority, time.Now().Format(time.Stamp), os.Getpid())
	message := make([]byte, 0, 4096)
	for n < len(lines) {
		end := bytes.IndexByte(lines[n:], '\n')
		if end < 0 {
			return n, errors.New("a line without its end") // Run hands over whole lines
		}
		message = append(append(message[:0], head...), lines[n:n+end]...)
		if _, err := conn.Write(message); err != nil {
			return n, fmt.Errorf("writing to syslog: %w", err)
		}
		n += end + 1
	}
	return n, nil
}
