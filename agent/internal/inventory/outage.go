package inventory

import (
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
)

// outage is since when something of the host's does not answer; zero: it does.
type outage struct{ since time.Time }

// note takes how a look ended, logs when an outage begins and ends, and says it
// for people; empty: there is none.
func (o *outage) note(log hclog.Logger, what string, err error) string {
	switch {
	case err == nil && !o.since.IsZero():
		log.Info(what+" answers", "silent_for", time.Since(o.since).Round(time.Second))
		o.since = time.Time{}
	case err != nil && o.since.IsZero():
		o.since = time.Now()
		log.Error(what+" does not answer", "error", err)
	}
	if err == nil {
		return ""
	}
	return fmt.Sprintf("%s has not answered since %s: %v", what, o.since.UTC().Format(time.RFC3339), err)
}
