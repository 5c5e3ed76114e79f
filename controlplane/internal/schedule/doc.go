// Package schedule says when named storage policies are due, and is the
// leader's controller that makes their operations then.
//
// Two notations: "every 15m", which counts from 1970-01-01T00:00Z whatever the
// zone, and five cron fields in an IANA time zone, as crontab(5) has them:
//
//	minute hour day-of-month month day-of-week
//
// with *, lists, ranges, steps and names (jan, mon); where both days are given
// either suffices. The fields are read by robfig/cron, which Kubernetes relies
// on for the same; the times are found here, since that library leaves a run
// out on the day on which its hour does not exist, and runs twice on the day
// on which it exists twice:
//
//   - A schedule of certain hours runs once for each: one that the clock passes
//     over when it is set forward runs as soon as the clock goes on, one that
//     comes twice runs the first time.
//   - A schedule of every hour runs whenever the clock shows its minutes, in
//     both of the hours that have one name, and not in one that is left out.
//
// After a pause, as when nobody led, a policy runs once, however often it would
// have been due. Its operations wait for nodes that are not heard; what is in use
// by one, or by anything else, when it is due again is left out that time, so
// that nothing queues. A retention policy that has snapshots taken prunes what
// they were taken of once they are, and nothing where they could not be.
package schedule
