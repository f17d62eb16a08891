"""A CSI driver as the cluster has it: its objects as plain manifests, with the sidecars beside it.

The same for the stand-in and for csi-dysk, so that a failure of the one and not of the other says whose it is. Rights
are the cluster administrator's here; the least that the sidecars need is the chart's to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tools.clusterlib.api import Manifest
from tools.clusterlib.imagelist import REGISTRY

__all__ = ["Driver", "manifests", "snapshot_controller"]

_SOCKET = "/csi/csi.sock"
_KUBELET = "/var/lib/kubelet"


@dataclass(frozen=True)
class Driver:
    """What is different from driver to driver; `name` is also the name of its classes.

    `controller` and `node` are command lines, in which $(NODE) is the node's name. `host_paths` are folders of the node
    that the driver needs at the same path, with what mounts cross them.
    """

    name: str
    namespace: str
    image: str
    controller: tuple[str, ...]
    node: tuple[str, ...]
    parameters: dict[str, str] = field(default_factory=dict)
    host_paths: tuple[tuple[str, str], ...] = ()
    host_pid: bool = False
    own_filesystems: bool = True  # a volume is a device with a file system, which has a size
    capabilities: dict[str, bool] = field(default_factory=dict)  # what External.Storage is to test

    @property
    def socket_folder(self) -> str:
        """Where the node part's socket lies on the node."""
        return f"{_KUBELET}/plugins/{self.name}"


def manifests(driver: Driver) -> list[Manifest]:
    """The objects of a driver: CSIDriver, rights, controller, node part and classes."""
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": driver.namespace}},
        *_rights(driver.namespace),
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSIDriver",
            "metadata": {"name": driver.name},
            "spec": {"attachRequired": True, "podInfoOnMount": False, "fsGroupPolicy": "File"},
        },
        _controller(driver),
        _node(driver),
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": driver.name},
            "provisioner": driver.name,
            "parameters": driver.parameters,
            "allowVolumeExpansion": True,
            "volumeBindingMode": "Immediate",
        },
        {
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshotClass",
            "metadata": {"name": driver.name},
            "driver": driver.name,
            "deletionPolicy": "Delete",
            "parameters": _snapshot_parameters(driver),
        },
    ]


def snapshot_controller() -> list[Manifest]:
    """The controller of VolumeSnapshots: once in a cluster, whatever drivers there are."""
    container = {
        "name": "controller",
        "image": f"{REGISTRY}/snapshot-controller:1",
        "args": ["--leader-election=false"],
    }
    return [*_rights("kube-system"), _workload("Deployment", "snapshot-controller", "kube-system", [container])]


def _snapshot_parameters(driver: Driver) -> dict[str, str]:
    """The Secret of the volumes serves for snapshots as well."""
    kinds = {"provisioner": "snapshotter"}
    return {
        key.replace(kind, other): value
        for key, value in driver.parameters.items()
        for kind, other in kinds.items()
        if key.startswith(f"csi.storage.k8s.io/{kind}-secret-")
    }


def _rights(namespace: str) -> list[Manifest]:
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "driver", "namespace": namespace}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"driver:{namespace}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "driver", "namespace": namespace}],
        },
    ]


def _workload(kind: str, name: str, namespace: str, containers: list[Manifest], **pod: Any) -> Manifest:
    """A Deployment of one, or a DaemonSet, of these containers."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            **({"replicas": 1} if kind == "Deployment" else {}),
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"serviceAccountName": "driver", "containers": containers, **pod},
            },
        },
    }


def _driver_container(driver: Driver, command: tuple[str, ...]) -> Manifest:
    shared = [
        {"name": f"host{number}", "mountPath": path, "mountPropagation": propagation}
        for number, (path, propagation) in enumerate(driver.host_paths)
    ]
    return {
        "name": "driver",
        "image": driver.image,
        "command": list(command),
        "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "securityContext": {"privileged": True},
        "volumeMounts": [{"name": "socket", "mountPath": "/csi"}, *shared],
    }


def _host_volumes(driver: Driver) -> list[Manifest]:
    return [
        {"name": f"host{number}", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
        for number, (path, _) in enumerate(driver.host_paths)
    ]


def _sidecar(name: str, *flags: str) -> Manifest:
    return {
        "name": name,
        "image": f"{REGISTRY}/{name}:1",
        "args": [f"--csi-address={_SOCKET}", *flags],
        "volumeMounts": [{"name": "socket", "mountPath": "/csi"}],
    }


def _controller(driver: Driver) -> Manifest:
    containers = [
        _driver_container(driver, driver.controller),
        _sidecar("csi-provisioner", "--extra-create-metadata", "--default-fstype=ext4"),
        _sidecar("csi-attacher"),
        _sidecar("csi-resizer"),
        _sidecar("csi-snapshotter"),
        _sidecar("livenessprobe"),
    ]
    volumes = [{"name": "socket", "emptyDir": {}}, *_host_volumes(driver)]
    return _workload("Deployment", "controller", driver.namespace, containers, volumes=volumes)


def _node(driver: Driver) -> Manifest:
    node = _driver_container(driver, driver.node)
    node["volumeMounts"].append({"name": "kubelet", "mountPath": _KUBELET, "mountPropagation": "Bidirectional"})
    registrar = _sidecar("node-driver-registrar", f"--kubelet-registration-path={driver.socket_folder}/csi.sock")
    registrar["volumeMounts"].append({"name": "registration", "mountPath": "/registration"})
    volumes = [
        {"name": "socket", "hostPath": {"path": driver.socket_folder, "type": "DirectoryOrCreate"}},
        {"name": "kubelet", "hostPath": {"path": _KUBELET, "type": "Directory"}},
        {"name": "registration", "hostPath": {"path": f"{_KUBELET}/plugins_registry", "type": "Directory"}},
        *_host_volumes(driver),
    ]
    return _workload("DaemonSet", "node", driver.namespace, [node, registrar], volumes=volumes, hostPID=driver.host_pid)
