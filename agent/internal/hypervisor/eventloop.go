package hypervisor

import (
	"fmt"
	"runtime"
	"sync"

	"libvirt.org/go/libvirt"
)

// loop is libvirt's own event loop. It is process-wide because libvirt's is:
// it must be registered before the first connection and run for ever, since
// keepalive and events come through it.
var loop = sync.OnceValue(func() error {
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return fmt.Errorf("registering libvirt's event loop: %w", err)
	}
	go func() {
		runtime.LockOSThread()
		for {
			// Its errors are those of a single wait; the next may do.
			_ = libvirt.EventRunDefaultImpl()
		}
	}()
	return nil
})
