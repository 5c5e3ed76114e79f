package store

import "time"

// LoseAfter sets for how long a view may be behind an etcd that answers.
func (v *View) LoseAfter(d time.Duration) { v.lostAfter = d }
