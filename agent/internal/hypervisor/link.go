package hypervisor

import (
	"fmt"
	"sync"
	"time"

	"libvirt.org/go/libvirt"
)

const (
	// keepaliveSeconds and keepaliveCount have libvirt give a silent libvirtd
	// up after about (count+1) intervals; calls that wait then fail.
	keepaliveSeconds = 2
	keepaliveCount   = 3
	// lookAgain is how long after a domain's end it is told of once more.
	lookAgain = time.Second
	// maxCalls is how many calls there are at once, each on a connection of its
	// own: libvirt's client (seen with 9.0.0) ends the process by SIGSEGV when a
	// connection that several threads use is closed because libvirtd hangs.
	maxCalls = 6
	// maxStuck is how many calls past their deadline condemn a link.
	maxStuck = maxCalls
)

// link is a set of connections to libvirtd: one that events come through, and
// one for each call at a time.
type link struct {
	conn *libvirt.Connect
	// calls are the connections for calls, free those that no call is on.
	calls []*libvirt.Connect
	free  chan *libvirt.Connect
	lost  chan struct{} // closed when the connections are to be replaced

	mu     sync.Mutex
	why    error // why it was lost
	stuck  int
	active int
	closed bool // release what is there when the last call has returned
	undo   []func()
}

// open connects. It may block for as long as libvirtd hangs.
func open(uri string, onEvent func(uuid string)) (*link, error) {
	conn, err := libvirt.NewConnect(uri)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", uri, err)
	}
	l := &link{conn: conn, free: make(chan *libvirt.Connect, maxCalls), lost: make(chan struct{})}
	if err := l.listen(onEvent); err != nil {
		l.retire()
		return nil, err
	}
	if err := l.fill(uri); err != nil {
		l.retire()
		return nil, err
	}
	return l, nil
}

// fill makes the connections for calls. A driver inside this process keeps its
// VMs for each connection apart, and has no libvirtd that could hang: there all
// calls share one.
func (l *link) fill(uri string) error {
	for range maxCalls {
		conn, err := libvirt.NewConnect(uri)
		if err != nil {
			return fmt.Errorf("connecting to %s: %w", uri, err)
		}
		l.calls = append(l.calls, conn)
		err = conn.SetKeepAlive(keepaliveSeconds, keepaliveCount)
		switch {
		case has(err, libvirt.ERR_NO_SUPPORT):
			conn = l.conn
		case err != nil:
			return fmt.Errorf("turning keepalive on: %w", err)
		}
		l.free <- conn
	}
	return nil
}

// listen has the connection watched and events told. A driver inside this
// process has no connection that could end, and says so.
func (l *link) listen(onEvent func(uuid string)) error {
	if err := l.conn.SetKeepAlive(keepaliveSeconds, keepaliveCount); err != nil && !has(err, libvirt.ERR_NO_SUPPORT) {
		return fmt.Errorf("turning keepalive on: %w", err)
	}
	err := l.conn.RegisterCloseCallback(func(_ *libvirt.Connect, reason libvirt.ConnectCloseReason) {
		l.lose(fmt.Errorf("libvirtd closed the connection (reason %d)", reason))
	})
	switch {
	case err == nil:
		l.undo = append(l.undo, func() { _ = l.conn.UnregisterCloseCallback() })
	case !has(err, libvirt.ERR_NO_SUPPORT):
		return fmt.Errorf("asking to be told of the connection's end: %w", err)
	}
	id, err := l.conn.DomainEventLifecycleRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
		uuid, err := d.GetUUIDString()
		if err != nil {
			return
		}
		onEvent(uuid)
		if e.Event == libvirt.DOMAIN_EVENT_STOPPED || e.Event == libvirt.DOMAIN_EVENT_UNDEFINED {
			// libvirt may still hold what it says has ended.
			time.AfterFunc(lookAgain, func() { onEvent(uuid) })
		}
	})
	if err != nil {
		return fmt.Errorf("asking for events: %w", err)
	}
	l.undo = append(l.undo, func() { _ = l.conn.DomainEventDeregister(id) })
	return l.listenForDevices(onEvent)
}

// listenForDevices has told what changes a running guest's definition without
// an event of its life: devices plugged and unplugged, media changed, disks
// that a block job has moved.
func (l *link) listenForDevices(onEvent func(uuid string)) error {
	tell := func(d *libvirt.Domain) {
		if uuid, err := d.GetUUIDString(); err == nil {
			onEvent(uuid)
		}
	}
	for _, register := range []func() (int, error){
		func() (int, error) {
			return l.conn.DomainEventDeviceAddedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventDeviceAdded) { tell(d) })
		},
		func() (int, error) {
			return l.conn.DomainEventDeviceRemovedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventDeviceRemoved) { tell(d) })
		},
		func() (int, error) {
			return l.conn.DomainEventDiskChangeRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventDiskChange) { tell(d) })
		},
		func() (int, error) {
			return l.conn.DomainEventBlockJobRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventBlockJob) { tell(d) })
		},
	} {
		id, err := register()
		if has(err, libvirt.ERR_NO_SUPPORT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("asking for events of devices: %w", err)
		}
		l.undo = append(l.undo, func() { _ = l.conn.DomainEventDeregister(id) })
	}
	return nil
}

// lose condemns the connection; the first reason counts.
func (l *link) lose(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why == nil {
		l.why = why
		close(l.lost)
	}
}

// begin and end bracket a call. begin is false when the connection is closed, or
// about to be: whoever waited for a slot meanwhile must not touch what libvirt has
// freed.
func (l *link) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.active++
	return true
}

func (l *link) end(conn *libvirt.Connect, wasStuck bool) {
	l.mu.Lock()
	l.active--
	if wasStuck {
		l.stuck--
	}
	last := l.closed && l.active == 0
	l.mu.Unlock()
	l.free <- conn
	if last {
		l.release()
	}
}

// stick counts a call that has passed its deadline and still blocks.
func (l *link) stick() {
	l.mu.Lock()
	l.stuck++
	full := l.stuck >= maxStuck
	l.mu.Unlock()
	if full {
		l.lose(fmt.Errorf("%d calls to libvirtd hang", maxStuck))
	}
}

// retire closes the connection when its last call has returned: libvirt does
// not allow it before.
func (l *link) retire() {
	l.mu.Lock()
	last := !l.closed && l.active == 0
	l.closed = true
	l.mu.Unlock()
	if last {
		l.release()
	}
}

func (l *link) release() {
	for _, undo := range l.undo {
		undo()
	}
	for _, conn := range l.calls {
		_, _ = conn.Close()
	}
	_, _ = l.conn.Close()
}

func (l *link) hanging() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stuck
}
