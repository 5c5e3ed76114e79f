package certs

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"
)

func TestRefusalsDoNotFillTheLog(t *testing.T) {
	var log bytes.Buffer
	r := &Reloader{log: hclog.New(&hclog.LoggerOptions{Output: &log}), refusals: rate.NewLimiter(0, 2)}
	for range 100 {
		r.logRefusal("192.0.2.1:1", "none", errors.New("unknown authority"))
	}
	if n := strings.Count(log.String(), "connection refused"); n != 2 {
		t.Errorf("100 refusals made %d lines, want 2", n)
	}
	r.refusals.SetBurst(0)
	r.refusals.SetLimit(rate.Inf)
	r.logRefusal("192.0.2.1:1", "none", errors.New("unknown authority"))
	if !strings.Contains(log.String(), "not_logged_before=98") {
		t.Errorf("the log does not say how many were left out:\n%s", log.String())
	}
}
