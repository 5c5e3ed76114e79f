package worker

import (
	"fmt"
	"time"
)

// Lapsed says of a right that its end, in seconds since 1970, has passed, and by
// which clock: one that is wrong on this host ends every right as it comes.
func Lapsed(end int64) string {
	const stamp = "2006-01-02 15:04:05 UTC"
	return fmt.Sprintf("has expired: it ended at %s, and this host's clock says %s", time.Unix(end, 0).UTC().Format(stamp), time.Now().UTC().Format(stamp))
}
