// Package zone loads time zones by their IANA names, the same ones on every
// replica: the database is part of the program, for machines without the
// package tzdata (Debian's minimal images lack it). A machine that has the
// package is asked first, so that its security updates bring changed laws
// without a new DebVisor.
package zone

import (
	"time"
	_ "time/tzdata" // for machines without a database of their own

	"github.com/debvisor/debvisor/shared/errdefs"
)

// accepted is what a field that holds a zone may say.
const accepted = "an IANA time zone such as Europe/Berlin or America/Sao_Paulo, or UTC; empty is UTC"

// Load gives the zone of that name; empty is UTC. The error is InvalidArgument
// and names the field that held the name. "Local" is refused: it is whatever
// the machine of the replica that happens to lead says.
func Load(field, name string) (*time.Location, error) {
	if name == "Local" {
		return nil, errdefs.Field(field, name, accepted)
	}
	loaded, err := time.LoadLocation(name)
	if err != nil {
		return nil, errdefs.Field(field, name, accepted).WithCause(err)
	}
	return loaded, nil
}
