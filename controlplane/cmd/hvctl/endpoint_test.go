package main

import (
	"slices"
	"testing"
)

func TestServers(t *testing.T) {
	for given, want := range map[string][]string{
		"":                     {"127.0.0.1:7443"},
		"cp1":                  {"cp1:7443"},
		"cp1:1, cp2 ,10.0.0.1": {"cp1:1", "cp2:7443", "10.0.0.1:7443"},
		"::1,[fe80::1]:99":     {"[::1]:7443", "[fe80::1]:99"},
		"cp1,":                 nil,
		":7443":                nil,
		"cp1:":                 nil,
		"cp1:https":            nil,
		"cp1:65536":            nil,
		"https://cp1":          nil,
		"a:b:c":                nil,
		"me@cp1":               nil,
	} {
		got, err := endpoint{Server: given}.servers()
		if (err != nil) != (want == nil) || !slices.Equal(got, want) {
			t.Errorf("servers of %q = %q, %v; expected %q", given, got, err, want)
		}
	}
}

func TestOverTakesAnIdentityAsAWhole(t *testing.T) {
	lower := endpoint{Server: "low", CA: "low.pem", Cert: "c", Key: "k"}
	for _, c := range []struct{ upper, want endpoint }{
		{endpoint{}, lower},
		{endpoint{Server: "up"}, endpoint{Server: "up", CA: "low.pem", Cert: "c", Key: "k"}},
		{endpoint{APIKey: "a"}, endpoint{Server: "low", CA: "low.pem", APIKey: "a"}},
		{endpoint{Cert: "d", Key: "l"}, endpoint{Server: "low", CA: "low.pem", Cert: "d", Key: "l"}},
	} {
		if got := c.upper.over(lower); got != c.want {
			t.Errorf("%+v over %+v = %+v", c.upper, lower, got)
		}
	}
}
