"""What `tools/cluster test` does with a driver, step by step; a step that does not come to its end is a ClusterError.

Each leaves the cluster as the next expects it, in the order of STEPS: install first, clean_up
after those that it cleans up after.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tools.clusterlib import api, cluster, workloads
from tools.clusterlib.driver import Driver
from tools.clusterlib.flexvolume import flex_volume
from tools.clusterlib.measure import measure
from tools.clusterlib.node import Node
from tools.clusterlib.objects import snapshot_controller
from tools.clusterlib.places import ClusterError
from tools.clusterlib.workloads import DATABASE, WRITER

__all__ = ["STEPS"]

_CLAIM, _WRITERS_CLAIM, _RESTORED = "database-data", "writer-data", "restored"
_WAIT_S = 180.0


def install(driver: Driver) -> None:
    """The driver, its classes and the snapshot controller; all nodes know the driver."""
    api.apply(*snapshot_controller())
    driver.install()
    _rolled_out("kube-system", "deployment/snapshot-controller")
    _rolled_out(driver.namespace, driver.controller, driver.node)

    def known() -> bool:
        names = [node.name for node in cluster.nodes()]
        listed = [api.get("csinode", name)["spec"]["drivers"] or [] for name in names]
        return all(driver.name in [entry["name"] for entry in entries] for entries in listed)

    api.wait_until(f"all nodes know {driver.name} (if not: kubectl get pods -n {driver.namespace})", known, _WAIT_S)


def walk_through(driver: Driver) -> None:
    """A claim, a database on it, a service before it: rows are there after the pod was deleted."""
    api.apply(workloads.claim(_CLAIM, driver.name, "32Gi"), workloads.service(DATABASE))
    api.apply(workloads.database(DATABASE, _CLAIM))
    took = api.wait_until("the database is ready", lambda: _is_ready(DATABASE), _WAIT_S)
    print(f"  from apply to ready: {took:.1f} s")
    _sql(DATABASE, "CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 1000)")
    address = api.get("service", DATABASE)["spec"]["clusterIP"]
    _expect_rows(_sql(DATABASE, "SELECT count(*) FROM t", address), 1000)
    api.delete("pod", _pod_of(DATABASE)["metadata"]["name"])
    api.wait_until("the database is ready again", lambda: _is_ready(DATABASE), _WAIT_S)
    _expect_rows(_sql(DATABASE, "SELECT count(*) FROM t"), 1000)


def disturb(driver: Driver) -> None:
    """A pod writes while the driver's pods are deleted and replaced and the kubelet starts anew: no operation fails."""
    api.apply(workloads.claim(_WRITERS_CLAIM, driver.name, "1Gi"), workloads.writer(_WRITERS_CLAIM))
    api.wait_until("the writer runs", api.pod_is("Running", WRITER), _WAIT_S)
    node = _node_of(api.get("pod", WRITER))
    parts = (driver.controller, driver.node)
    disturbances: dict[str, Callable[[], None]] = {
        "the driver's pods are deleted": lambda: _delete_pods(driver.namespace),
        "the driver is rolled out anew": lambda: _restart(driver.namespace, *parts),
        "the kubelet starts anew": lambda: _restart_kubelet(node),
    }
    if driver.next_image:
        disturbances["the driver is upgraded"] = lambda: _upgrade(driver)
    for what, disturbance in disturbances.items():
        disturbance()
        _rolled_out(driver.namespace, *parts)
        _writes_on(what)
    api.delete("pod", WRITER)
    api.delete("pvc", _WRITERS_CLAIM)


def drain(driver: Driver) -> None:
    """The database goes to another node when its own is drained, with its rows."""
    if len(cluster.nodes()) < 2:
        raise ClusterError("draining takes two nodes: tools/cluster down; tools/cluster up --nodes 2")
    node = _node_of(_pod_of(DATABASE))
    api.kubectl("drain", node.name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", f"--timeout={_WAIT_S}s")
    took = api.wait_until("the database is ready elsewhere", lambda: _is_ready(DATABASE), _WAIT_S)
    print(f"  from drained to ready: {took:.1f} s")
    _expect_rows(_sql(DATABASE, "SELECT count(*) FROM t"), 1000)
    api.kubectl("uncordon", node.name)
    _rolled_out(driver.namespace, driver.controller)


def expand(driver: Driver) -> None:
    """The claim grows while the database uses it; the file system as well, where the driver has one per volume."""
    before = _size_in(DATABASE)
    change = {"spec": {"resources": {"requests": {"storage": "40Gi"}}}}
    api.kubectl("patch", "pvc", _CLAIM, "--patch", json.dumps(change))

    def grown() -> bool:
        return bool(api.get("pvc", _CLAIM)["status"]["capacity"]["storage"] == "40Gi")

    took = api.wait_until("the claim has 40Gi", grown, _WAIT_S)
    print(f"  from patch to grown: {took:.1f} s")
    if driver.own_filesystems and _size_in(DATABASE) < before + 7 * 2**30:
        raise ClusterError(f"the claim has 40Gi, and the file system has not grown: {_size_in(DATABASE)} bytes")
    _expect_rows(_sql(DATABASE, "SELECT count(*) FROM t"), 1000)


def restore(driver: Driver) -> None:
    """A snapshot is taken of the running database, then rows are added: a claim from the snapshot lacks them."""
    api.apply(workloads.snapshot("first", driver.name, _CLAIM))

    def usable() -> bool:
        return bool(api.get("volumesnapshot", "first").get("status", {}).get("readyToUse"))

    took = api.wait_until("the snapshot is usable", usable, _WAIT_S)
    print(f"  snapshot: {took:.1f} s")
    _sql(DATABASE, "INSERT INTO t SELECT generate_series(1001, 2000)")
    source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "first"}
    api.apply(workloads.claim(_RESTORED, driver.name, "40Gi", source), workloads.database(_RESTORED, _RESTORED))
    took = api.wait_until("the restored database is ready", lambda: _is_ready(_RESTORED), _WAIT_S)
    print(f"  restored and ready: {took:.1f} s")
    _expect_rows(_sql(_RESTORED, "SELECT count(*) FROM t"), 1000)
    _expect_rows(_sql(DATABASE, "SELECT count(*) FROM t"), 2000)
    _remove(_RESTORED, _RESTORED)
    api.delete("volumesnapshot", "first")


def lose_power(driver: Driver) -> None:
    """The database's node loses power and is marked so: the database is ready on another, with its rows."""
    node = _node_of(_pod_of(DATABASE))
    node.kill()
    api.kubectl("taint", "node", node.name, "node.kubernetes.io/out-of-service=:NoExecute")
    took = api.wait_until("the database is ready elsewhere", lambda: _is_ready(DATABASE, node), 2 * _WAIT_S)
    print(f"  from power loss to ready elsewhere: {took:.1f} s")
    if not int(_sql(DATABASE, "SELECT count(*) FROM t")) >= 1000:
        raise ClusterError("rows that were committed are gone after the node lost power")
    node.start()
    cluster.wait_until_ready()
    api.kubectl("taint", "node", node.name, "node.kubernetes.io/out-of-service-")
    _rolled_out(driver.namespace, driver.controller, driver.node)


def clean_up(driver: Driver) -> None:
    """What the steps made is deleted; no volume of the driver stays."""
    _remove(DATABASE, _CLAIM)
    api.delete("service", DATABASE)

    def none_left() -> bool:
        items: list[dict[str, Any]] = json.loads(api.kubectl("get", "pv", "-o", "json"))["items"]
        return not any(item["spec"].get("csi", {}).get("driver") == driver.name for item in items)

    api.wait_until("no volume of the driver is left", none_left, _WAIT_S)


STEPS: dict[str, Callable[[Driver], None]] = {
    step.__name__.replace("_", "-"): step
    for step in (install, walk_through, disturb, drain, expand, restore, lose_power, clean_up, flex_volume, measure)
}


def _pod_of(app: str) -> api.Manifest:
    """The pod of a Deployment of one that is not on its way out."""
    pods: list[api.Manifest] = json.loads(api.kubectl("get", "pods", "-l", f"app={app}", "-o", "json"))["items"]
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    if len(staying) != 1:
        raise ClusterError(f"{len(staying)} pods of {app} are there")
    return staying[0]


def _node_of(pod: api.Manifest) -> Node:
    return Node(int(pod["spec"]["nodeName"].removeprefix("node")))


def _is_ready(app: str, not_on: Node | None = None) -> bool:
    pod = _pod_of(app)
    if not_on and pod["spec"].get("nodeName") == not_on.name:
        return False
    return any(state["type"] == "Ready" and state["status"] == "True" for state in pod["status"].get("conditions", ()))


def _in_pod(app: str, *command: str) -> str:
    return api.kubectl("exec", _pod_of(app)["metadata"]["name"], "--", *command)


def _sql(app: str, statement: str, host: str = "127.0.0.1") -> str:
    command = ("psql", "-h", host, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-qtAc", statement)
    return _in_pod(app, *command).strip()


def _expect_rows(counted: str, rows: int) -> None:
    if counted != str(rows):
        raise ClusterError(f"the database was to have {rows} rows and has {counted}")


def _size_in(app: str) -> int:
    """The size in bytes of the file system that the pod has at /data."""
    return int(_in_pod(app, "df", "--block-size=1", "--output=size", "/data").split()[-1])


def _rolled_out(namespace: str, *workloads_: str) -> None:
    for workload in workloads_:
        api.kubectl("rollout", "status", workload, "-n", namespace, f"--timeout={_WAIT_S}s", timeout_s=_WAIT_S + 10)


def _restart(namespace: str, *workloads_: str) -> None:
    for workload in workloads_:
        api.kubectl("rollout", "restart", workload, "-n", namespace)


def _delete_pods(namespace: str) -> None:
    api.kubectl("delete", "pods", "--all", "-n", namespace, "--grace-period=1")


def _upgrade(driver: Driver) -> None:
    assert driver.next_image
    for node in cluster.nodes():
        cluster.load_images(node, driver.next_image, driver.image)
    _restart(driver.namespace, driver.controller, driver.node)


def _restart_kubelet(node: Node) -> None:
    node.space.stop("kubelet")
    node.start_kubelet()


def _writes_on(after: str) -> None:
    """The writer is the same as before, and its number goes up."""
    seen: list[int] = []

    def goes_on() -> bool:
        seen.append(_number())  # which the kubelet tells, so not at once after its start
        return seen[-1] > seen[0]

    api.wait_until(f"after {after}, the writer goes on", goes_on, _WAIT_S)
    status = api.get("pod", WRITER)["status"]
    restarts = sum(container["restartCount"] for container in status["containerStatuses"])
    if status["phase"] != "Running" or restarts:
        raise ClusterError(f"after {after}, the writer is {status['phase']} and was started {restarts} times again")
    print(f"  {after}: the writer goes on")


def _number() -> int:
    return int(api.kubectl("logs", WRITER, "--tail=1") or 0)


def _remove(deployment: str, of_claim: str) -> None:
    api.delete("deployment", deployment)
    api.wait_until(f"no pod of {deployment} is left", lambda: _gone(deployment), _WAIT_S)
    api.delete("pvc", of_claim)


def _gone(app: str) -> bool:
    return not json.loads(api.kubectl("get", "pods", "-l", f"app={app}", "-o", "json"))["items"]
