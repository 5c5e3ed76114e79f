package api

import (
	"testing"
	"time"
)

func TestStrangersAreCountedByNetwork(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	s := NewStrangers()
	for range failuresPerMinute {
		if err := s.failed("2001:db8::1", now); err != nil {
			t.Fatal(err)
		}
	}
	for peer, refused := range map[string]bool{
		"2001:db8::1": true, "2001:db8::ffff": true, "2001:db8:0:1::1": false, "192.0.2.1": false, "": false,
	} {
		if err := s.admit(peer, now); (err != nil) != refused {
			t.Errorf("%q: %v", peer, err)
		}
	}
	if err := s.admit("2001:db8::1", now.Add(time.Minute)); err != nil {
		t.Errorf("a minute later: %v", err)
	}
}
