package repldiff

import (
	"slices"
	"strings"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// HoldTag is the tag of a job's holds.
func HoldTag(job string) string { return "debvisor:" + job }

// isMark tells a job's bookmarks by their names: behind the job there is the guid, in
// hex, and no more, as "debvisor-j-" also begins those of a job "j-1".
func isMark(job, name string) bool {
	guid, ok := strings.CutPrefix(name, "debvisor-"+job+"-")
	return ok && guid != "" && strings.Trim(guid, "0123456789abcdef") == ""
}

// marked tells whether a job's holds and bookmarks are those of a snapshot that
// both ends have, and no others. Where the source has its bookmark only, there is
// nothing to hold.
func (d *decision) marked(guid uint64) bool {
	bookmarked := false
	for _, b := range d.Source.Bookmarks {
		if !isMark(d.Job, b.GetName()) {
			continue
		}
		if b.GetGuid() != guid {
			return false
		}
		bookmarked = true
	}
	held := func(snapshots []*agentv1.ZfsSnapshot) bool {
		return !slices.ContainsFunc(snapshots, func(s *agentv1.ZfsSnapshot) bool {
			return slices.Contains(s.GetHolds(), HoldTag(d.Job)) != (s.GetGuid() == guid)
		})
	}
	return bookmarked && held(d.source) && held(d.target)
}
