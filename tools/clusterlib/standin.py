"""The stand-in driver, whose volumes are folders (tests/kubernetes/go/cluster/standin), with the sidecars beside it."""

from __future__ import annotations

from tools.clusterlib import api
from tools.clusterlib.api import Manifest
from tools.clusterlib.driver import COMMON, Driver
from tools.clusterlib.imagelist import REGISTRY
from tools.clusterlib.node import SHARED
from tools.clusterlib.objects import rights, workload

__all__ = ["STANDIN"]

_NAME, _NAMESPACE, _IMAGE = "standin.cluster.test", "standin", f"{REGISTRY}/standin:1"
_SOCKET = "/csi/csi.sock"
_KUBELET = "/var/lib/kubelet"
_PLUGIN = f"{_KUBELET}/plugins/{_NAME}"


def _install() -> None:
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}}, *rights(_NAMESPACE))
    api.apply(_controller(), _node(), *_classes())


def _driver() -> Manifest:
    return {
        "name": "driver",
        "image": _IMAGE,
        "args": [f"--socket={_SOCKET}", f"--root={SHARED}", "--node=$(NODE)"],
        "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "securityContext": {"privileged": True},
        "volumeMounts": [{"name": "socket", "mountPath": "/csi"}, {"name": "shared", "mountPath": SHARED}],
    }


def _sidecar(name: str, *flags: str) -> Manifest:
    return {
        "name": name,
        "image": f"{REGISTRY}/{name}:1",
        "args": [f"--csi-address={_SOCKET}", *flags],
        "volumeMounts": [{"name": "socket", "mountPath": "/csi"}],
    }


def _host_path(name: str, path: str, kind: str) -> Manifest:
    return {"name": name, "hostPath": {"path": path, "type": kind}}


def _controller() -> Manifest:
    containers = [
        _driver(),
        _sidecar("csi-provisioner", "--extra-create-metadata", "--default-fstype=ext4"),
        _sidecar("csi-attacher"),
        _sidecar("csi-resizer"),
        _sidecar("csi-snapshotter"),
        _sidecar("livenessprobe"),
    ]
    volumes = [{"name": "socket", "emptyDir": {}}, _host_path("shared", SHARED, "Directory")]
    return workload("Deployment", "controller", _NAMESPACE, containers, volumes=volumes)


def _node() -> Manifest:
    driver = _driver()
    driver["volumeMounts"].append({"name": "kubelet", "mountPath": _KUBELET, "mountPropagation": "Bidirectional"})
    registrar = _sidecar("node-driver-registrar", f"--kubelet-registration-path={_PLUGIN}/csi.sock")
    registrar["volumeMounts"].append({"name": "registration", "mountPath": "/registration"})
    volumes = [
        _host_path("socket", _PLUGIN, "DirectoryOrCreate"),
        _host_path("kubelet", _KUBELET, "Directory"),
        _host_path("registration", f"{_KUBELET}/plugins_registry", "Directory"),
        _host_path("shared", SHARED, "Directory"),
    ]
    return workload("DaemonSet", "node", _NAMESPACE, [driver, registrar], volumes=volumes)


def _classes() -> list[Manifest]:
    named = {"metadata": {"name": _NAME}}
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSIDriver",
            **named,
            "spec": {"attachRequired": True, "podInfoOnMount": False, "fsGroupPolicy": "File"},
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            **named,
            "provisioner": _NAME,
            "allowVolumeExpansion": True,
        },
        {
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshotClass",
            **named,
            "driver": _NAME,
            "deletionPolicy": "Delete",
        },
    ]


STANDIN = Driver(
    name=_NAME,
    namespace=_NAMESPACE,
    image=_IMAGE,
    controller="deployment/controller",
    node="daemonset/node",
    install=_install,
    # No file system is its own, so none grows.
    capabilities=COMMON | {"FSResizeFromSourceNotSupported": True},
    own_filesystems=False,
)
