package agent

import (
	"net"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/agent/internal/enroll"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestPortRange(t *testing.T) {
	for text, want := range map[string]portRange{
		"192.0.2.1:7450-7499": {"192.0.2.1", 7450, 7499},
		"[2001:db8::1]:7450":  {"2001:db8::1", 7450, 7450},
		":1-65535":            {"", 1, 65535},
	} {
		if got, err := parsePortRange(text); got != want || err != nil {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "192.0.2.1", "192.0.2.1:", "192.0.2.1:9-8", "192.0.2.1:0-8", "192.0.2.1:1-65536", "2001:db8::1:1-2", "h:a-b"} {
		if got, err := parsePortRange(text); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestAdvertisedAddress(t *testing.T) {
	for _, host := range []string{"192.0.2.1", "node.example.org", "2001:db8::1"} {
		if got, err := advertised(t.Context(), host, nil); got != host || err != nil {
			t.Errorf("%s: %q, %v", host, got, err)
		}
	}
	for _, host := range []string{"", "0.0.0.0", "::"} {
		got, err := advertised(t.Context(), host, []string{"no address", "127.0.0.1:7444"})
		if net.ParseIP(got) == nil || !net.ParseIP(got).IsLoopback() || err != nil {
			t.Errorf("%q: %q, %v", host, got, err)
		}
		if got, err := advertised(t.Context(), host, nil); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%q without a replica: %q, %v", host, got, err)
		}
	}
}

// TestPortInUse says which setting names a port that somebody else has.
func TestPortInUse(t *testing.T) {
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	address := taken.Addr().String()
	_, err = listenForPeers(t.Context(), Config{PeerListen: address}, enroll.Record{}, nil)
	if err == nil || !strings.Contains(err.Error(), "--peer-listen "+address) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("with a port that is taken: %v", err)
	}
}
