package pki

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// revokedAtOnce is how many certificates one change revokes: Unfinished tells of
// more.
const revokedAtOnce = 400

// Revocation ends all certificates of a holder.
type Revocation struct {
	Holder
	Reason string
	// Own is the serial of the certificate with which it is asked for; "": none.
	Own string
	Now time.Time
}

// Change adds to a change what ends the holder's certificates, and gives their
// serials. NotFound for a holder that does not exist or has none;
// FailedPrecondition where the caller's own would be among them.
func (r Revocation) Change(s *cluster.Snapshot, c *store.Change) ([]string, error) {
	serials := r.serials(s)
	if slices.Contains(serials, r.Own) {
		return nil, errdefs.New(errdefs.FailedPrecondition, "OWN_CERTIFICATE",
			"%s is the certificate that this call was made with; revoke it as somebody else", r.Own).With("serial", r.Own)
	}
	if r.Kind == Agent {
		if err := r.outdate(s, c); err != nil {
			return nil, err
		}
	} else if len(serials) == 0 {
		return nil, errdefs.New(errdefs.NotFound, "CERTIFICATE_NOT_FOUND",
			"no certificate of %s is known that has neither ended nor been revoked; one that was issued without the cluster's knowledge is revoked by its serial", r.Holder)
	}
	serials = serials[:min(len(serials), revokedAtOnce)]
	for _, serial := range serials {
		c.Require = append(c.Require, store.Absent(store.RevokedKey(serial)))
		c.Puts = append(c.Puts, store.PutString(store.RevokedKey(serial), r.Reason))
	}
	return serials, nil
}

// Unfinished gives the change that ends what came in between: certificates that
// were handed out at the same moment, and those beyond what one change holds.
func (r Revocation) Unfinished(s *cluster.Snapshot) (c store.Change, serials []string) {
	serials = r.serials(s)
	serials = slices.DeleteFunc(serials, func(serial string) bool {
		return s.Certificates[serial].Value.GetIssuedAt().AsTime().After(r.Now)
	})
	serials = serials[:min(len(serials), revokedAtOnce)]
	for _, serial := range serials {
		c.Require = append(c.Require, store.Absent(store.RevokedKey(serial)))
		c.Puts = append(c.Puts, store.PutString(store.RevokedKey(serial), r.Reason))
	}
	return c, serials
}

// serials are those of the holder's certificates that would open anything.
func (r Revocation) serials(s *cluster.Snapshot) []string {
	a := newAccount(s, r.Now)
	var serials []string
	for serial, e := range s.Certificates {
		if holderOf(e.Value) == r.Holder && a.valid(e.Value) {
			serials = append(serials, serial)
		}
	}
	// What an agent shows counts though it was issued before there were records.
	if shown := s.Statuses[r.Name].Value.GetCertificateSerial(); r.Kind == Agent && shown != "" && !slices.Contains(serials, shown) {
		if _, revoked := a.revoked(shown); !revoked {
			serials = append(serials, shown)
		}
	}
	slices.Sort(serials)
	return serials
}

// outdate makes every certificate of the node's agent one of a former enrolment,
// those that nobody has noted as well.
func (r Revocation) outdate(s *cluster.Snapshot, c *store.Change) error {
	entry, ok := s.Nodes[r.Name]
	if !ok || entry.Value.GetEnrolledAt() == nil {
		return errdefs.New(errdefs.NotFound, "NODE_NOT_FOUND", "no node %q is enrolled", r.Name).With("node", r.Name)
	}
	node, _ := proto.Clone(entry.Value).(*storev1.Node)
	at := r.Now
	for _, e := range s.Certificates {
		if issued := e.Value.GetIssuedAt().AsTime(); holderOf(e.Value) == r.Holder && issued.After(at) {
			at = issued // by a replica whose clock is ahead
		}
	}
	node.EnrolledAt = timestamppb.New(at.Truncate(time.Second).Add(time.Second))
	key := store.NodeKey(r.Name)
	c.Require = append(c.Require, store.Unchanged(key, entry.ModRevision))
	c.Puts = append(c.Puts, store.PutProto(key, node))
	return nil
}
