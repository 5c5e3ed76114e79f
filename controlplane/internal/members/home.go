package members

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/debvisor/debvisor/certs"
)

// Home is a replica's data directory.
type Home struct {
	// Dir is the directory.
	Dir string
	// WrapKey is the file of the key that seals the CA's keys at rest; empty:
	// Dir/pki/wrap.key. It may be a systemd credential.
	WrapKey string
}

// Authority names the files of the cluster's CA.
func (h Home) Authority() certs.AuthorityFiles {
	return certs.AuthorityFiles{Cert: h.pki("ca.pem"), Key: h.pki("ca-key.pem")}
}

// Ring names the files of the cluster's CAs, more than one while they are
// exchanged.
func (h Home) Ring() certs.RingFiles {
	return certs.RingFiles{AuthorityFiles: h.Authority(), Cross: h.pki("ca-cross.pem")}
}

// EtcdAuthority names the files of etcd's own CA.
func (h Home) EtcdAuthority() certs.AuthorityFiles {
	return certs.AuthorityFiles{Cert: h.etcdPKI("ca.pem"), Key: h.etcdPKI("ca-key.pem")}
}

// Server names the files that the replica's listeners serve.
func (h Home) Server() certs.Files {
	return certs.Files{
		CA: h.pki("ca.pem"), Cert: h.pki("server.pem"), Key: h.pki("server-key.pem"),
		Remedy: "start the replica again with its CA key in place, or issue a new one",
	}
}

// EtcdPeer names the files that the replica's etcd shows to its peers.
func (h Home) EtcdPeer() certs.Files {
	return certs.Files{
		CA: h.etcdPKI("ca.pem"), Cert: h.etcdPKI("peer.pem"), Key: h.etcdPKI("peer-key.pem"),
		Remedy: "start the replica again with its etcd CA key in place, or issue a new one",
	}
}

// Operator names the files of the first principal's certificate.
func (h Home) Operator() certs.Pair {
	return certs.Pair{Cert: h.pki("operator.pem"), Key: h.pki("operator-key.pem")}
}

// RecordFile is where the replica's Record is.
func (h Home) RecordFile() string { return filepath.Join(h.Dir, "replica.json") }

func (h Home) pki(name string) string     { return filepath.Join(h.Dir, "pki", name) }
func (h Home) etcdPKI(name string) string { return filepath.Join(h.Dir, "etcd", "pki", name) }
func (h Home) sealKey() string            { return h.pki("join-seal.key") }
func (h Home) ownSealKey() string         { return h.pki("seal.key") }
func (h Home) issued() string             { return h.pki("issued") }
func (h Home) revoked() string            { return h.pki("revoked") }
func (h Home) former() string             { return h.pki("former") }

func (h Home) wrapKey() string {
	if h.WrapKey != "" {
		return h.WrapKey
	}
	return h.pki("wrap.key")
}

// create makes the directories, for their owner only.
func (h Home) create() error {
	for _, dir := range []string{h.Dir, h.pki(""), h.etcdPKI("")} {
		if err := os.MkdirAll(dir, certs.DirMode); err != nil {
			return fmt.Errorf("make the data directory: %w", err)
		}
	}
	return nil
}

// vacant refuses a directory that is a replica's already.
func (h Home) vacant() error {
	for _, path := range []string{h.RecordFile(), h.Authority().Cert, h.Authority().Key} {
		if _, err := os.Stat(path); err == nil {
			return fmt.Errorf("%s exists: %s is a replica's data directory already, and nothing in it is overwritten", path, h.Dir)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look into the data directory: %w", err)
		}
	}
	return nil
}

// wrap reads the wrap key, making it where there is none.
func (h Home) wrap() (certs.WrapKey, error) {
	if _, err := os.Stat(h.wrapKey()); errors.Is(err, fs.ErrNotExist) {
		key, err := certs.NewWrapKey()
		if err != nil {
			return certs.WrapKey{}, err
		}
		return key, key.WriteNew(h.wrapKey())
	}
	return h.readWrap()
}

// readWrap reads the wrap key, which must be there.
func (h Home) readWrap() (certs.WrapKey, error) {
	key, err := certs.ReadWrapKey(h.wrapKey())
	if h.WrapKey == "" && errors.Is(err, fs.ErrNotExist) {
		return key, fmt.Errorf("wrap key %s is missing and no other is named: put it back, name its file with --wrap-key-file or RPC_WRAP_KEY_FILE, "+
			"or have systemd load it as the credential wrap.key (%w)", h.wrapKey(), fs.ErrNotExist)
	}
	return key, err
}
