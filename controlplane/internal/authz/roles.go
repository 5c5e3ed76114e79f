package authz

// builtins are the names of the built-in roles, in order.
func builtins() []string { return []string{"developer", "monitor", "operator", "viewer"} }

// builtin gives the permissions of a built-in role. Those of the contract's
// resources are the contract's; operator and viewer have those of what we add.
func builtin(role string) []string {
	switch role {
	case "operator":
		return []string{
			"node:*", "migration:*", "storage:*",
			"vm:*", "operation:*", "token:*", "replica:*", "cluster:*", "reflection:*",
			"key:*", "certificate:*", "role:*", "principal:*", "tenant:*", "audit:*", "ca:*", "event:*", "metrics:*",
		}
	case "developer":
		return []string{"node:list", "storage:snapshot:create", "storage:snapshot:list", "storage:clone:*"}
	case "monitor":
		return []string{"node:list", "node:heartbeat"}
	case "viewer":
		return []string{
			"node:list", "storage:snapshot:list", "migration:plan",
			"node:get", "vm:list", "vm:get", "operation:list", "operation:get", "token:list", "cluster:get", "reflection:get",
			"key:list", "certificate:list", "role:list", "role:get", "principal:list", "principal:get", "tenant:list", "ca:get", "event:list", "metrics:get",
			"storage:list", "storage:image:list", "migration:lost:list", "storage:retention:list", "storage:replication:list", "storage:replication:status",
		}
	}
	return nil
}
