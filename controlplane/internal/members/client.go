package members

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/shared/identity"
)

// IssueClient issues a client certificate for a principal with the CA of a
// replica's data directory and writes <out>/<name>.pem, <name>-key.pem and
// ca.pem. It refuses to overwrite a certificate. A life of 0 is
// certs.ClientLife. The replica tells the cluster of it once it runs.
func IssueClient(home Home, name, out string, life time.Duration) (certs.Pair, error) {
	if err := identity.CheckPrincipal(name); err != nil {
		return certs.Pair{}, err
	}
	wrap, err := home.readWrap()
	if err != nil {
		return certs.Pair{}, err
	}
	ring, err := certs.LoadRing(home.Ring(), wrap, time.Now())
	if err != nil {
		return certs.Pair{}, err
	}
	if err := os.MkdirAll(out, certs.DirMode); err != nil {
		return certs.Pair{}, fmt.Errorf("make the directory for the certificate: %w", err)
	}
	pair := certs.Pair{Cert: filepath.Join(out, name+".pem"), Key: filepath.Join(out, name+"-key.pem")}
	if _, err := os.Stat(pair.Cert); !errors.Is(err, fs.ErrNotExist) {
		return certs.Pair{}, fmt.Errorf("%s exists and is not overwritten", pair.Cert)
	}
	if err := exchange(pair, ring, certs.ClientLeaf(name, life)); err != nil {
		return certs.Pair{}, err
	}
	if err := home.note(pair.Cert); err != nil {
		return certs.Pair{}, err
	}
	return pair, certs.WriteFile(filepath.Join(out, "ca.pem"), ring.Bundle(), certs.PublicMode)
}
