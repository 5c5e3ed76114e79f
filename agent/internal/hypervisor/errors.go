package hypervisor

import (
	"errors"
	"fmt"

	"libvirt.org/go/libvirt"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// CodeLibvirt is the code of errors that libvirt itself gave; their message is
// libvirt's own.
const CodeLibvirt = "LIBVIRT_ERROR"

// translate gives libvirt's error a kind. Those of a connection that broke are
// made by the callers, who know whether it did.
func translate(doing string, err error) error {
	var e libvirt.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	kind, code := errdefs.FailedPrecondition, CodeLibvirt
	switch e.Code {
	case libvirt.ERR_NO_DOMAIN:
		kind, code = errdefs.NotFound, "VM_NOT_FOUND"
	case libvirt.ERR_OPERATION_ABORTED:
		kind = errdefs.Cancelled
	case libvirt.ERR_OPERATION_TIMEOUT, libvirt.ERR_AGENT_UNRESPONSIVE:
		kind = errdefs.Unavailable
	}
	return errdefs.New(kind, code, "%s", e.Message).
		With("libvirt_code", fmt.Sprint(int(e.Code))).WithCause(fmt.Errorf("%s: %w", doing, err))
}

// has tells whether err is libvirt's error of that number.
func has(err error, number libvirt.ErrorNumber) bool { return errors.Is(err, number) }
