package tunnel

import (
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// unanswered is how long the other host may leave bytes or a probe without an
// acknowledgement before the connection counts as broken. A migration whose
// packets are dropped in silence is then given up, and the guest goes on where
// it is, long before TCP's own quarter of an hour.
const unanswered = 12 * time.Second

// impatient has the kernel end a connection to a host that is gone.
func impatient(c net.Conn) error {
	conn, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	err := conn.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: unanswered / 4, Interval: unanswered / 4, Count: 3})
	if err != nil {
		return fmt.Errorf("having the connection probed: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("bounding the patience of a connection: %w", err)
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unanswered.Milliseconds()))
	})
	if err = errors.Join(err, set); err != nil {
		return fmt.Errorf("bounding the patience of a connection: %w", err)
	}
	return nil
}
