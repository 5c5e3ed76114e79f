package main

import (
	"testing"
	"time"
)

func TestSize(t *testing.T) {
	for bytes, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1023: "1.0 KiB", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 20: "1 MiB",
		1000 << 20: "1.0 GiB", 660 << 20: "660 MiB", 1<<64 - 1: "16 EiB",
	} {
		if got := size(bytes); got != want {
			t.Errorf("size(%d) = %q, expected %q", bytes, got, want)
		}
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                               "0ms",
		999 * time.Millisecond:          "999ms",
		time.Second:                     "1.0s",
		59*time.Second + 990*1e6:        "59.9s",
		2*time.Minute + 5*time.Second:   "2m05s",
		59*time.Minute + 59*time.Second: "59m59s",
		3*time.Hour + 12*time.Minute:    "3h12m",
		52 * time.Hour:                  "2d04h",
		-time.Second:                    "-1.0s",
	} {
		if got := duration(d); got != want {
			t.Errorf("duration(%v) = %q, expected %q", d, got, want)
		}
	}
	if got := millis(1<<64 - 1); got == "" || got[0] == '-' {
		t.Errorf("millis of the largest number is %q", got)
	}
}

func TestClean(t *testing.T) {
	for text, want := range map[string]string{
		"n1 → n2\nnext":       "n1 → n2\nnext",
		"\x1b[31mred\a\r":     "?[31mred??",
		"left\u202eright\xff": "left?right\ufffd",
	} {
		if got := clean(text); got != want {
			t.Errorf("clean(%q) = %q, expected %q", text, got, want)
		}
	}
}
