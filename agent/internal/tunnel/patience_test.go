package tunnel

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAHostIsGoneThatAcknowledgesNothing(t *testing.T) {
	for what, c := range map[string]struct {
		info unix.TCPInfo
		want bool
	}{
		"data is not acknowledged":         {unix.TCPInfo{Unacked: 3, Last_ack_recv: 13_000}, true},
		"probes are not acknowledged":      {unix.TCPInfo{Probes: 2, Last_ack_recv: 13_000}, true},
		"data is on its way":               {unix.TCPInfo{Unacked: 3, Last_ack_recv: 11_000}, false},
		"the reader is slow, and probed":   {unix.TCPInfo{Probes: 1, Last_ack_recv: 400}, false},
		"nothing was sent for a long time": {unix.TCPInfo{Last_ack_recv: 3_600_000}, false},
	} {
		if got := gone(&c.info); got != c.want {
			t.Errorf("%s: gone: %v, want %v", what, got, c.want)
		}
	}
}

func TestASilentConnectionIsProbed(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := impatient(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := tcpInfo(c.(*net.TCPConn)); err != nil {
		t.Errorf("the kernel does not tell: %v", err)
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		get := func(option int) int {
			v, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option)
			if err != nil {
				t.Error(err)
			}
			return v
		}
		idle, interval, count := get(unix.TCP_KEEPIDLE), get(unix.TCP_KEEPINTVL), get(unix.TCP_KEEPCNT)
		if s := idle + interval*count; s <= 0 || s > 15 {
			t.Errorf("silence is noticed after %d + %d × %d s", idle, count, interval)
		}
		if timeout := get(unix.TCP_USER_TIMEOUT); timeout != 0 {
			t.Errorf("a reader that is slow for %d ms would end the connection", timeout)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
