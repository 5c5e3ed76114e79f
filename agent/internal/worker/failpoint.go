package worker

// Where an agent may die between its promises; the fault tests stop it there.
// The names are those of the kinds that they are about.

// accepted is passed once a task is accepted, before it is begun.
func accepted(kind string) {
	switch kind {
	case "migrate-send":
		// gofail: var sendAfterAccepted struct{}
	case "migrate-receive":
		// gofail: var receiveAfterAccepted struct{}
	case "vm-start":
		// gofail: var startAfterAccepted struct{}
	}
}

// ended is passed once a kind has ended, before the journal knows.
func ended(kind string) {
	switch kind {
	case "migrate-send":
		// gofail: var sendBeforeOutcome struct{}
	case "migrate-receive":
		// gofail: var receiveBeforeOutcome struct{}
	case "vm-start":
		// gofail: var startBeforeOutcome struct{}
	}
}
