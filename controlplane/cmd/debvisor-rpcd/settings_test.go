package main

import (
	"testing"

	"github.com/debvisor/debvisor/shared/config/configtest"
)

// TestDefaultFileIsDocumented: what packages install and what the documentation
// says is made from the keys.
func TestDefaultFileIsDocumented(t *testing.T) {
	configtest.Made(t, daemon(), "../../..", "systemd/rpcd.yaml")
	cmd, _, err := newRootCmd().Find([]string{"serve"})
	if err != nil {
		t.Fatal(err)
	}
	configtest.Flags(t, daemon(), cmd)
}
