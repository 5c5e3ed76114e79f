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
	d := Domain{State: DomainAbsent}
	err := n.withDomain(vm, func(dom *libvirt.Domain) error {
		var err error
		d, err = inspect(dom)
		return err
	})
	if errors.Is(err, libvirt.ERR_NO_DOMAIN) {
		return Domain{State: DomainAbsent}, nil
	}
	return d, err
}

// Domains asks the node's libvirt for all of its VMs, by UUID.
func (n *Node) Domains() (map[string]Domain, error) {
	conn, err := n.Connect()
	if err != nil {
		return nil, fmt.Errorf("libvirt of %s: %w", n.Name, err)
	}
	defer func() { _, _ = conn.Close() }()
	list, err := conn.ListAllDomains(0)
	if err != nil {
		return nil, fmt.Errorf("domains of %s: %w", n.Name, err)
	}
	all := map[string]Domain{}
	var failed []error
	for i := range list {
		id, err := list[i].GetUUIDString()
		if err == nil {
			all[id], err = inspect(&list[i])
		}
		failed = append(failed, err, list[i].Free())
	}
	return all, errors.Join(failed...)
}

// SetMigrateSpeed limits how fast the VM's memory leaves the node, MiB/s, for a migration that goes on and for those that begin
// later on this node.
func (n *Node) SetMigrateSpeed(vm string, mib uint64) error {
	return n.withDomain(vm, func(dom *libvirt.Domain) error { return dom.MigrateSetMaxSpeed(mib, 0) })
}

// Migrating says whether the VM's memory is leaving the node, by libvirt.
func (n *Node) Migrating(vm string) (bool, error) {
	active := false
	err := n.withDomain(vm, func(dom *libvirt.Domain) error {
		job, err := dom.GetJobInfo()
		active = err == nil && job.Type != libvirt.DOMAIN_JOB_NONE
		return err
	})
	return active, err
}

// withDomain calls f with a VM of the node's libvirt; the error is libvirt's ERR_NO_DOMAIN where there is none.
func (n *Node) withDomain(vm string, f func(*libvirt.Domain) error) error {
	conn, err := n.Connect()
	if err != nil {
		return fmt.Errorf("libvirt of %s: %w", n.Name, err)
	}
	defer func() { _, _ = conn.Close() }()
	dom, err := conn.LookupDomainByUUIDString(vm)
	if err != nil {
		return fmt.Errorf("VM %s on %s: %w", vm, n.Name, err)
	}
	defer func() { _ = dom.Free() }()
	return f(dom)
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
