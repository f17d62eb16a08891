"""The FlexVolume driver beside the CSI driver: the kubelet calls it, with no sidecar and no controller between them."""

from __future__ import annotations

from tools.clusterlib import api, workloads
from tools.clusterlib.driver import Driver
from tools.clusterlib.node import Node

__all__ = ["flex_volume"]

_CLAIM, _NAME = "disk-of-csi", "disk-of-flexvolume"
_SIZE = "1Gi"
_WAIT_S = 180.0


def flex_volume(driver: Driver) -> None:
    """A disk is used by FlexVolume on one node, then on the other, and what was written is there."""
    if not driver.flex_volume:
        print(f"  {driver.name} has none")
        return
    api.apply(workloads.claim(_CLAIM, driver.name, _SIZE))
    api.wait_until("the disk is made", lambda: api.get("pvc", _CLAIM)["status"]["phase"] == "Bound", _WAIT_S)
    _account, container, blob = _handle().split("/", 2)
    flex = {**driver.flex_volume, "options": {"container": container, "blob": blob}}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": _NAME},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": _SIZE},
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"name": _NAME, "namespace": "default"},
            "flexVolume": flex,
        },
    }
    api.apply(volume, workloads.claim(_NAME, "", _SIZE))
    took = [_use(Node(number), write=number == 1) for number in (1, 2)]
    print(f"  from apply to running: {took[0]:.1f} s, on the other node {took[1]:.1f} s")
    api.delete("pvc", _NAME, _CLAIM)
    api.delete("pv", _NAME)


def _handle() -> str:
    volume = api.get("pv", api.get("pvc", _CLAIM)["spec"]["volumeName"])
    return str(volume["spec"]["csi"]["volumeHandle"])


def _use(node: Node, *, write: bool) -> float:
    """A pod that writes, or finds, a file; the seconds until it runs. It is gone at the end."""
    api.apply(workloads.sleeper(_NAME, _NAME, node.name))
    took = api.wait_until(f"the pod with the FlexVolume runs on {node.name}", api.pod_is("Running", _NAME), _WAIT_S)
    command = "echo kept >/data/file && sync /data/file" if write else 'grep --quiet "^kept$" /data/file'
    api.kubectl("exec", _NAME, "--", "/bin/bash", "-c", command)
    api.delete("pod", _NAME)
    return took
