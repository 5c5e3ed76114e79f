package members

import (
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
)

// Look reads a replica's data directory as Open does, and changes nothing in it.
// The error joins all that Open would refuse.
func Look(home Home) error {
	if _, err := ReadRecord(home); err != nil {
		return err
	}
	wrap, err := home.readWrap()
	if err != nil {
		return err
	}
	_, caErr := certs.LoadAuthority(home.Authority(), wrap, time.Now())
	_, etcdErr := certs.LoadAuthority(home.EtcdAuthority(), wrap, time.Now())
	errs := []error{caErr, etcdErr}
	for _, files := range []certs.Files{home.Server(), home.EtcdPeer()} {
		files.Grace = certs.AuthorityLife // an old leaf is reissued at the start
		_, err := certs.NewReloader(files, hclog.NewNullLogger())
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
