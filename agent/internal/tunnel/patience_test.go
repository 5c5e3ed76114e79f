package tunnel

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAConnectionToAHostThatIsGoneEnds(t *testing.T) {
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
	if err := impatient(c); err != nil {
		t.Fatal(err)
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// Data without an answer and a silent connection: both within 15 s.
	err = raw.Control(func(fd uintptr) {
		get := func(option int) int {
			v, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option)
			if err != nil {
				t.Error(err)
			}
			return v
		}
		if ms := get(unix.TCP_USER_TIMEOUT); ms <= 0 || ms > 15_000 {
			t.Errorf("unacknowledged data is waited for %d ms", ms)
		}
		idle, interval, count := get(unix.TCP_KEEPIDLE), get(unix.TCP_KEEPINTVL), get(unix.TCP_KEEPCNT)
		if s := idle + interval*count; s <= 0 || s > 15 {
			t.Errorf("silence is noticed after %d + %d × %d s", idle, count, interval)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
