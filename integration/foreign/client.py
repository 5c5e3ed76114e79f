"""A client of debvisor.v1 that shares nothing with ours: generated from integration/contract by Debian's grpc tools.

client.py SERVER CA CERT KEY NODE VM SOURCE TARGET registers NODE, reports its health, lists the nodes, asks whether VM can
move from SOURCE to TARGET, and moves it. It prints one JSON object of what it was told.
"""
import json
import sys

import contract_pb2 as pb
import contract_pb2_grpc as rpc
import grpc


def read(path):
    with open(path, "rb") as f:
        return f.read()


def ref(node):
    return pb.NodeRef(node_id=pb.NodeId(id=node))


def main(server, ca, cert, key, node, vm, source, target):
    credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(cert))
    told = {}
    with grpc.secure_channel(server, credentials) as channel:
        nodes, migrations = rpc.NodeServiceStub(channel), rpc.MigrationServiceStub(channel)
        info = pb.NodeInfo(id=pb.NodeId(id=node), hostname=node, ip="192.0.2.7", rack="r1", zone="z1", version="1")
        told["register"] = nodes.RegisterNode(info, timeout=10).status
        try:
            nodes.RegisterNode(info, timeout=10)
        except grpc.RpcError as e:
            told["register_again"] = e.code().name
        health = pb.Health(node_id=pb.NodeId(id=node), overall=pb.STATUS_WARN, ceph_status="HEALTH_OK", cpu_load=0.5,
                           mem_used_pct=12.5, disk_used_pct=50, net_rtt_ms=0.25, timestamp=pb.Timestamp(seconds=1700000000))
        told["heartbeat"] = nodes.Heartbeat(health, timeout=10).status
        try:
            nodes.Heartbeat(pb.Health(node_id=pb.NodeId(id="nobody")), timeout=10)
        except grpc.RpcError as e:
            told["heartbeat_nobody"] = e.code().name
        told["nodes"] = {
            n.info.id.id: {"ip": n.info.ip, "rack": n.info.rack, "overall": n.health.overall, "ceph": n.health.ceph_status,
                           "cpu_load": n.health.cpu_load, "mem": n.health.mem_used_pct}
            for n in nodes.ListNodes(pb.Empty(), timeout=10).nodes
        }
        plan = migrations.PrepareMigration(pb.VMMigratePlan(vm=pb.VMRef(vm_id=vm), source=ref(source), target=ref(target)), timeout=10)
        told["plan"] = {"status": plan.status, "allowed": plan.allowed, "message": plan.message}
        refused = migrations.PrepareMigration(pb.VMMigratePlan(vm=pb.VMRef(vm_id=vm), target=ref(source)), timeout=10)
        told["plan_in_place"] = {"status": refused.status, "allowed": refused.allowed, "message": refused.message}
        done = migrations.MigrateVM(pb.VMMigrateSpec(vm=pb.VMRef(vm_id=vm), source=ref(source), target=ref(target)), timeout=60)
        told["migrate"] = {"status": done.status, "message": done.message}
        try:
            migrations.MigrateVM(pb.VMMigrateSpec(vm=pb.VMRef(vm_id="none")), timeout=10)
        except grpc.RpcError as e:
            told["migrate_none"] = e.code().name
            status = [v for k, v in e.trailing_metadata() if k == "grpc-status-details-bin"]
            told["has_details"] = bool(status) and b"debvisor.v1.ErrorDetails" in status[0]
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
