package lab

import (
	"errors"
	"fmt"

	"libvirt.org/go/libvirt"
)

// A DomainState is what a node's libvirt says of a VM.
type DomainState string

// The states that a test can meet; libvirt's others are spelt "state <number>".
const (
	DomainAbsent  DomainState = "absent" // libvirt does not know it
	DomainRunning DomainState = "running"
	DomainPaused  DomainState = "paused"
	DomainShutOff DomainState = "shut off" // defined, not running
)

// A Domain is a VM as one node's libvirt sees it.
type Domain struct {
	State      DomainState
	Persistent bool // its definition outlives it
	Autostart  bool
}

// Domain asks the node's libvirt for a VM.
func (n *Node) Domain(vm string) (Domain, error) {
	absent := Domain{State: DomainAbsent}
	conn, err := n.Connect()
	if err != nil {
		return absent, fmt.Errorf("libvirt of %s: %w", n.Name, err)
	}
	defer func() { _, _ = conn.Close() }()
	dom, err := conn.LookupDomainByUUIDString(vm)
	if errors.Is(err, libvirt.ERR_NO_DOMAIN) {
		return absent, nil
	}
	if err != nil {
		return absent, fmt.Errorf("VM %s on %s: %w", vm, n.Name, err)
	}
	defer func() { _ = dom.Free() }()
	return inspect(dom)
}

func inspect(dom *libvirt.Domain) (Domain, error) {
	var d Domain
	state, _, err := dom.GetState()
	if err != nil {
		// It may have left while we asked, which is an answer as well.
		if errors.Is(err, libvirt.ERR_NO_DOMAIN) {
			return Domain{State: DomainAbsent}, nil
		}
		return d, err
	}
	switch state {
	case libvirt.DOMAIN_RUNNING:
		d.State = DomainRunning
	case libvirt.DOMAIN_PAUSED:
		d.State = DomainPaused
	case libvirt.DOMAIN_SHUTOFF:
		d.State = DomainShutOff
	default:
		d.State = DomainState(fmt.Sprintf("state %d", state))
	}
	if d.Persistent, err = dom.IsPersistent(); err == nil && d.Persistent {
		d.Autostart, err = dom.GetAutostart()
	}
	if errors.Is(err, libvirt.ERR_NO_DOMAIN) {
		return Domain{State: DomainAbsent}, nil
	}
	return d, err
}
