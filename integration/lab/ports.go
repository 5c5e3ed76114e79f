package lab

// The ports of the daemons in the lab, which are their defaults where they have one.
const (
	CallersPort  = 7443 // of a replica, for callers
	AgentsPort   = 7444 // of a replica, for agents
	PeersPort    = 7442 // of a replica, for the etcd of the others
	AgentPort    = 7445 // of an agent, for other agents
	GatewayPort  = 7446 // of a replica, for HTTP/JSON; it has no default
	MetricsPort  = 7447 // of a replica, for who watches over it
	TunnelsFirst = 7450 // the first port of tunnels
	TunnelsLast  = 7499

	failpointPort = 22381 // only with Options.Failpoints
)
