package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// unanswered is how long the other host may leave bytes or probes without an
// acknowledgement before the connection counts as broken. A migration whose
// packets are dropped in silence is then given up, and the guest goes on where
// it is, long before TCP's own quarter of an hour.
//
// TCP_USER_TIMEOUT is not what does it: since Linux 5.11 it also ends a
// connection whose reader is merely slow (zero window), as a target's disk is.
const unanswered = 12 * time.Second

// impatient has a connection to a host that is gone closed, for as long as ctx
// lasts or the connection is open.
func impatient(ctx context.Context, c net.Conn) error {
	conn, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	// For a connection on which nothing is under way.
	err := conn.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: unanswered / 4, Interval: unanswered / 4, Count: 3})
	if err != nil {
		return fmt.Errorf("having the connection probed: %w", err)
	}
	go func() {
		tick := time.NewTicker(unanswered / 6)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			info, err := tcpInfo(conn)
			if err != nil {
				return // closed
			}
			if gone(info) {
				_ = conn.SetDeadline(time.Unix(1, 0)) // a closed one would look like one that was not wanted any more
				return
			}
		}
	}()
	return nil
}

// gone tells whether the other host has acknowledged nothing for too long
// though there was something to acknowledge.
func gone(info *unix.TCPInfo) bool {
	waits := info.Unacked > 0 || info.Probes > 0
	return waits && time.Duration(info.Last_ack_recv)*time.Millisecond >= unanswered
}

func tcpInfo(conn *net.TCPConn) (info *unix.TCPInfo, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("looking at a connection: %w", err)
	}
	var asked error
	err = raw.Control(func(fd uintptr) {
		info, asked = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if err = errors.Join(err, asked); err != nil {
		return nil, fmt.Errorf("looking at a connection: %w", err)
	}
	return info, nil
}
