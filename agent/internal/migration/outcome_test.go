package migration

import (
	"errors"
	"fmt"
	"testing"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestRefusedKeepsLibvirtsWords(t *testing.T) {
	libvirts := errdefs.New(errdefs.FailedPrecondition, hypervisor.CodeLibvirt, "Unsafe migration")
	for name, c := range map[string]struct {
		err         error
		code        string
		message     string
		interrupted bool
	}{
		"libvirt's":   {fmt.Errorf("migrating: %w", libvirts), hypervisor.CodeLibvirt, "Unsafe migration", false},
		"broken":      {errdefs.New(errdefs.FailedPrecondition, hypervisor.CodeBroken, "End of file"), hypervisor.CodeBroken, "End of file", true},
		"unavailable": {errdefs.New(errdefs.Unavailable, "LIBVIRT_UNAVAILABLE", "libvirt does not answer"), "LIBVIRT_UNAVAILABLE", "libvirt does not answer", true},
		"another's":   {errors.New("no space"), "X", "no space", false},
	} {
		out := refused("X", c.err)
		if out.GetErrorCode() != c.code || out.GetErrorMessage() != c.message || out.GetInterrupted() != c.interrupted {
			t.Errorf("%s: %v", name, out)
		}
	}
}
