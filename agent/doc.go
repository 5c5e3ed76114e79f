// Package agent is the assembly of debvisor-agent, the daemon of a hypervisor
// host: Config and Run. It makes the parts, ties them together and runs them as
// one group; what they do is theirs (see internal/).
package agent
