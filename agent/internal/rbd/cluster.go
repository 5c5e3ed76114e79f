//go:build ceph_preview

package rbd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/ceph/go-ceph/rados"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// timeouts are librados's own, in seconds. Without them a call waits for ever, and
// they count only when they are set before connecting.
var timeouts = map[string]string{
	"rados_osd_op_timeout": "3",
	"rados_mon_op_timeout": "4",
	"client_mount_timeout": "5",
}

// cluster is the child's one connection.
type cluster struct {
	conn    *rados.Conn
	fsid    string
	address string
	number  int64

	templates templates
	// threads are those that requests may take beyond one each.
	threads chan struct{}
}

// moreThreads bounds what requests do at once beyond one thing each.
const moreThreads = 4

// connect connects within client_mount_timeout. After a failure the process is of
// no further use: librados keeps its threads.
func connect(conf, user string) (*cluster, hello, error) {
	var none hello
	conn, err := rados.NewConnWithUser(user)
	if err != nil {
		return nil, none, fmt.Errorf("preparing a connection as client.%s: %w", user, err)
	}
	if err := conn.ReadConfigFile(conf); err != nil {
		return nil, none, errdefs.New(errdefs.FailedPrecondition, CodeCeph, "%s cannot be read as Ceph's configuration: %v", conf, err)
	}
	for option, value := range timeouts {
		if err := conn.SetConfigOption(option, value); err != nil {
			return nil, none, fmt.Errorf("setting %s: %w", option, err)
		}
	}
	if err := conn.Connect(); err != nil {
		return nil, none, translate(err, false, "connecting as client.%s", user)
	}
	c := &cluster{conn: conn, number: int64(conn.GetInstanceID()), threads: make(chan struct{}, moreThreads)}
	if c.fsid, err = conn.GetFSID(); err != nil {
		return nil, none, translate(err, false, "asking for the cluster's id")
	}
	addrs, err := conn.GetAddrs()
	if err != nil {
		return nil, none, translate(err, false, "asking for our own address")
	}
	c.address = plainAddress(addrs)
	return c, hello{FSID: c.fsid, Address: c.address}, nil
}

// plainAddress is 192.0.2.1:0/123456 of "v2:192.0.2.1:0/123456" and the like.
func plainAddress(addr string) string {
	addr, _, _ = strings.Cut(strings.Trim(addr, "[]"), ",v")
	for _, kind := range []string{"v1:", "v2:", "any:"} {
		addr = strings.TrimPrefix(addr, kind)
	}
	return addr
}

// serve does what is asked.
func (c *cluster) serve(ctx context.Context, r *request) (proto.Message, error) {
	switch r.verb {
	case verbProbe:
		return c.probe(ctx, r)
	case verbBury:
		return c.bury(ctx, r)
	case verbInventory:
		return c.inventory(ctx, r)
	case verbImage:
		return c.image(ctx, r)
	case verbList:
		return c.list(ctx, r)
	case verbCreate:
		return c.create(ctx, r)
	case verbRemove:
		return c.remove(ctx, r)
	case verbClone:
		return c.clone(ctx, r)
	case verbFlatten:
		return c.flatten(ctx, r)
	case verbRemoveImage:
		return c.removeImage(ctx, r)
	case verbFence:
		return c.fence(ctx, r)
	case verbUnfence:
		return c.unfence(ctx, r)
	case verbBlocklist:
		return c.blocklisted(ctx, r)
	}
	return nil, errdefs.New(errdefs.Unimplemented, CodeCeph, "a request of an unknown kind: %d", r.verb)
}

// mon asks the monitors; into, unless nil, takes their answer's JSON.
func (c *cluster) mon(ctx context.Context, r *request, command map[string]any, into any) error {
	if err := r.step(ctx, "asking the monitors: %v", command["prefix"]); err != nil {
		return err
	}
	command["format"] = "json"
	text, err := json.Marshal(command)
	if err != nil {
		return err
	}
	answer, said, err := c.conn.MonCommand(text)
	if err != nil {
		return withText(translate(err, changing(r.verb), "asking the monitors: %v", command["prefix"]), said)
	}
	if into == nil {
		return nil
	}
	// The first value of it: the blocklist's ranges follow its entries as another.
	if err := json.NewDecoder(bytes.NewReader(answer)).Decode(into); err != nil {
		return fmt.Errorf("reading the monitors' answer to %v: %w", command["prefix"], err)
	}
	return nil
}

// probe asks the monitors, and a pool for one object that need not exist.
func (c *cluster) probe(ctx context.Context, r *request) (proto.Message, error) {
	if err := c.mon(ctx, r, map[string]any{"prefix": "osd stat"}, nil); err != nil {
		return nil, err
	}
	if len(r.payload) == 0 {
		return &agentv1.RbdOutcome{}, nil
	}
	pool, err := c.pool(ctx, r, string(r.payload), "")
	if err != nil {
		return nil, err
	}
	defer pool.Destroy()
	if err := r.step(ctx, "asking pool %s for an object", r.payload); err != nil {
		return nil, err
	}
	if _, err := pool.Stat("rbd_directory"); err != nil && errno(err) != notFound {
		return nil, translate(err, false, "asking pool %s for an object", r.payload)
	}
	return &agentv1.RbdOutcome{}, nil
}

// pool opens a pool and a namespace of it. One that librados does not know yet is
// asked for first: looking it up would wait for the monitors without end.
func (c *cluster) pool(ctx context.Context, r *request, name, namespace string) (*rados.IOContext, error) {
	if err := r.step(ctx, "looking for pool %s", name); err != nil {
		return nil, err
	}
	known, err := c.conn.ListPools()
	if err != nil {
		return nil, translate(err, false, "listing pools")
	}
	if !slices.Contains(known, name) {
		var pools []struct {
			Name string `json:"poolname"`
		}
		if err := c.mon(ctx, r, map[string]any{"prefix": "osd lspools"}, &pools); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(pools, func(p struct {
			Name string `json:"poolname"`
		},
		) bool {
			return p.Name == name
		}) {
			return nil, errdefs.New(errdefs.NotFound, CodePoolNotFound, "Ceph has no pool %s", name).With("pool", name)
		}
		if err := r.step(ctx, "opening pool %s", name); err != nil {
			return nil, err
		}
	}
	pool, err := c.conn.OpenIOContext(name)
	if err != nil {
		return nil, translate(err, false, "opening pool %s", name)
	}
	pool.SetNamespace(namespace)
	return pool, nil
}
