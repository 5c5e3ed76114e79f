package planner

import (
	"fmt"
	"strings"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// few joins the first of the words, and counts the others.
func few(words []string, most int, separator string) string {
	if len(words) <= most {
		return strings.Join(words, separator)
	}
	return fmt.Sprintf("%s and %d more", strings.Join(words[:most], separator), len(words)-most)
}

func stateWord(state debvisorv1.VMState) string {
	if state == debvisorv1.VMState_VM_STATE_INCOMING {
		return "being received from another node"
	}
	return "in an unknown state"
}

func livenessWord(live storev1.NodeLiveness) string {
	switch live {
	case storev1.NodeLiveness_NODE_LIVENESS_SUSPECT:
		return "suspect: 3 heartbeats missed"
	case storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE:
		return "unreachable"
	default:
		return "it never had a session"
	}
}
