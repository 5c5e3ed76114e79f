package lab

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirt"

	"github.com/debvisor/debvisor/integration/ceph"
)

// cephSecret is the id of libvirt's secret with the key of the guests' user of Ceph, the same on every node, as definitions that
// move name it.
const cephSecret = "5d0c7d52-8a5e-4b8f-9f8e-6f1a7c1f0ce9"

// cephPlace runs the cluster's processes where the callers of replicas are, at the end of the bridge that all nodes reach.
type cephPlace struct{ *Place }

// Start is ceph.Place's.
func (p cephPlace) Start(name, log string, args ...string) (ceph.Process, error) {
	return p.Place.Start(Command{Name: name, Args: args, Log: log})
}

// startCeph starts the lab's Ceph, if it is to have one.
func (l *Lab) startCeph(ctx context.Context) error {
	if l.opts.Ceph == nil {
		return nil
	}
	o := *l.opts.Ceph
	o.Dir, o.Address, o.Place = filepath.Join(l.Dir, "ceph"), bridgeAddr, cephPlace{l.Operator}
	var err error
	l.Ceph, err = ceph.Start(ctx, o)
	return err
}

// etcCeph is the node's /etc/ceph, as the host sees it.
func (n *Node) etcCeph() string { return filepath.Join(n.dir, "ceph") }

// GiveCeph makes the node a client of the lab's Ceph: its configuration, and the keys of the agent. TakeCeph ends it.
func (n *Node) GiveCeph() error {
	return n.lab.Ceph.Hand(n.etcCeph(), "/etc/ceph", ceph.Agent)
}

// TakeCeph takes the configuration and the keys away: the node's agent then finds no Ceph. What is connected stays so.
func (n *Node) TakeCeph() error {
	entries, err := os.ReadDir(n.etcCeph())
	for _, e := range entries {
		if err == nil {
			err = os.Remove(filepath.Join(n.etcCeph(), e.Name()))
		}
	}
	return err
}

// knowCeph gives the node, and its libvirt the guests' key, what they need of the lab's Ceph.
func (n *Node) knowCeph() error {
	if n.lab.Ceph == nil {
		return nil
	}
	if err := n.GiveCeph(); err != nil {
		return err
	}
	conn, err := n.Connect()
	if err != nil {
		return err
	}
	defer func() { _, _ = conn.Close() }()
	secret, err := conn.SecretDefineXML(fmt.Sprintf(
		`<secret ephemeral='no' private='yes'><uuid>%s</uuid><usage type='ceph'><name>client.%s</name></usage></secret>`, cephSecret, ceph.Libvirt), 0)
	if err != nil {
		return fmt.Errorf("libvirt's secret on %s: %w", n.Name, err)
	}
	defer func() { _ = secret.Free() }()
	return setSecret(secret, n.lab.Ceph.Key(ceph.Libvirt))
}

func setSecret(secret *libvirt.Secret, key string) error {
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		return err
	}
	return secret.SetValue(raw, 0)
}

// makeImage makes the image that a disk is, unless it is one that is there already.
func (d Disk) makeImage(ctx context.Context) error {
	if d.Image != "" {
		return nil
	}
	_, err := d.lab.Ceph.Admin(ctx, "rbd", "create", "--size", fmt.Sprintf("%dM", d.MiB), d.Path)
	return err
}

// readImageOfCeph reads all of an image, or of a snapshot of it, as it is at this moment.
func (l *Lab) readImageOfCeph(ctx context.Context, spec string) ([]byte, error) {
	if image, snapshot, is := strings.Cut(spec, "@"); is {
		return l.Ceph.ReadSnapshot(ctx, image, snapshot)
	}
	out, err := l.Ceph.Admin(ctx, "rbd", "export", "--no-progress", spec, "-")
	return []byte(out), err
}

// HistoryIn reads a guest's history from an image, "pool/image", or from a snapshot, "pool/image@snapshot", be it a group's.
func (l *Lab) HistoryIn(ctx context.Context, spec string) (History, error) {
	raw, err := l.readImageOfCeph(ctx, spec)
	if err != nil {
		return nil, err
	}
	h, err := parseHistory(raw)
	if err != nil {
		return h, fmt.Errorf("%s: %w", spec, err)
	}
	return h, nil
}

// cephSource is the source of a disk that is an image, in libvirt's XML.
func (d Disk) cephSource() string {
	var hosts strings.Builder
	for _, monitor := range d.lab.Ceph.Monitors() {
		host, port, _ := strings.Cut(monitor, ":")
		fmt.Fprintf(&hosts, "<host name='%s' port='%s'/>", host, port)
	}
	return fmt.Sprintf(`<auth username='%s'><secret type='ceph' uuid='%s'/></auth>
      <source protocol='rbd' name='%s'>%s</source>`, ceph.Libvirt, cephSecret, d.Path, &hosts)
}
