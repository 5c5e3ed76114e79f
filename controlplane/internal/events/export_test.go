package events

import "time"

// NewSized makes a feed that keeps so many facts at hand.
var NewSized = newFeed

// BookmarkEvery sets after how long of nothing else a bookmark is sent.
func (f *Feed) BookmarkEvery(d time.Duration) { f.bookmarkEvery = d }
