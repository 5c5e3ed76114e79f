package members

import (
	"crypto"
	"fmt"
	"time"

	"github.com/debvisor/debvisor/certs"
)

// Options say what a new replica is to be.
type Options struct {
	// Name is the replica's.
	Name string
	// Cluster is a new cluster's name; a joiner is told it.
	Cluster string
	// Hosts are the names and addresses that the replica is reached under;
	// empty: 127.0.0.1 and localhost.
	Hosts []string
	// PeerListen is where its etcd listens for peers, IP:port; empty: the
	// first host with DefaultPeerPort.
	PeerListen string
}

func (o Options) record() (Record, error) {
	if len(o.Hosts) == 0 {
		o.Hosts = []string{"127.0.0.1", "localhost"}
	}
	listen, peerURL, err := peerAddresses(o.PeerListen, o.Hosts)
	if err != nil {
		return Record{}, err
	}
	r := Record{Name: o.Name, Cluster: o.Cluster, Hosts: o.Hosts, PeerListen: listen, PeerURL: peerURL}
	return r, r.check()
}

// Init makes a cluster's first replica: both CAs, the server's certificate, the
// etcd peer's, and a client certificate for the principal "operator". It fails
// when the directory holds a replica or a CA, and overwrites nothing.
func Init(home Home, o Options) (Record, error) {
	r, err := o.record()
	if err != nil {
		return Record{}, err
	}
	r.State, r.InitialCluster = StateNew, r.Name+"="+r.PeerURL
	if err := home.vacant(); err != nil {
		return Record{}, err
	}
	if err := home.create(); err != nil {
		return Record{}, err
	}
	now := time.Now()
	ca, err := certs.NewAuthority("DebVisor CA of "+r.Cluster, now)
	if err != nil {
		return Record{}, err
	}
	etcdCA, err := certs.NewAuthority("DebVisor etcd CA of "+r.Cluster, now)
	if err != nil {
		return Record{}, err
	}
	k := keeping{home: home, record: r, ring: certs.NewRing(ca, nil), etcdCA: etcdCA}
	if err := k.install(nil); err != nil {
		return Record{}, err
	}
	if err := exchange(home.Operator(), k.ring, certs.ClientLeaf("operator", 0)); err != nil {
		return Record{}, err
	}
	return r, r.write(home)
}

// keeping is a replica's record and CAs.
type keeping struct {
	home   Home
	record Record
	ring   *certs.Ring
	etcdCA *certs.Authority
	// life is that of the replica's own leaves; 0: certs.ServerLife.
	life time.Duration
}

// install writes the CAs, keys sealed, and issues the replica's leaves. The
// bundle is what members of etcd trust; nil: its CA alone.
func (k keeping) install(etcdBundle []byte) error {
	wrap, err := k.home.wrap()
	if err != nil {
		return err
	}
	if err := k.ring.Save(k.home.Ring(), wrap); err != nil {
		return err
	}
	if err := k.etcdCA.Save(k.home.EtcdAuthority(), wrap, etcdBundle); err != nil {
		return err
	}
	if err := k.issueServer(); err != nil {
		return err
	}
	return k.issuePeer()
}

func (k keeping) issueServer() error {
	files := k.home.Server()
	return exchange(certs.Pair{Cert: files.Cert, Key: files.Key}, k.ring,
		certs.ServerLeaf(k.record.Cluster, k.record.Name, k.record.Hosts, k.life))
}

func (k keeping) issuePeer() error {
	files := k.home.EtcdPeer()
	return exchange(certs.Pair{Cert: files.Cert, Key: files.Key}, k.etcdCA,
		certs.EtcdPeerLeaf(k.record.Name, k.record.peerHosts(), k.life))
}

// issuer signs leaves: certs.Authority, certs.Ring.
type issuer interface {
	Issue(pub crypto.PublicKey, leaf certs.Leaf, now time.Time) ([]byte, error)
}

// exchange gives a pair a new key and a new certificate.
func exchange(pair certs.Pair, ca issuer, leaf certs.Leaf) error {
	key, err := pair.NextKey()
	if err != nil {
		return err
	}
	return certify(pair, ca, leaf, key.Public())
}

func certify(pair certs.Pair, ca issuer, leaf certs.Leaf, pub crypto.PublicKey) error {
	certPEM, err := ca.Issue(pub, leaf, time.Now())
	if err != nil {
		return fmt.Errorf("issue %s: %w", pair.Cert, err)
	}
	return pair.Install(certPEM)
}
