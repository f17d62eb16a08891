"""csi-dysk as its users install it, by the chart, with a page blob server beside the control plane for an account."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

from tools.clusterlib import api, network
from tools.clusterlib.control import CONTROL
from tools.clusterlib.driver import COMMON, Driver
from tools.clusterlib.imagelist import REGISTRY, SIDECARS
from tools.clusterlib.node import PLUGINS
from tools.clusterlib.places import BIN, KUBECONFIG, ROOT, RUN, ClusterError

__all__ = ["DYSK"]

_NAME = _NAMESPACE = "csi-dysk"
_CHART, _RELEASE = ROOT / "packaging" / "helm" / "blobfuse-dysk", "dysk"
_TIMEOUT_S = 300
_PORT = 10000
_ACCOUNT = "clusteraccount"
_KEY = base64.b64encode(b"the key of an account that is nowhere but here, 64 bytes long...").decode()
_ENDPOINT = f"http://{network.CONTROL_ADDRESS}:{_PORT}/{_ACCOUNT}"
_SECRET = {"name": "dysk-account", "namespace": _NAMESPACE}
# How the chart calls the sidecars that are not called as their programs are.
_IN_CHART = {"livenessprobe": "livenessProbe", "node-driver-registrar": "registrar", "snapshot-controller": None}


def _install() -> None:
    if not _CHART.is_dir():
        raise ClusterError(f"there is no chart of the driver: {_CHART} is missing in this tree")
    if not CONTROL.service_pids("page-blob-server"):
        _start_server()
    api.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "azure/dysk",
            "metadata": _SECRET,
            "stringData": {
                "accountname": _ACCOUNT,
                "accountkey": _KEY,
                "endpoint": _ENDPOINT,
                "allowhttp": "yes",
            },
        },
    )
    api.apply(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "VolumeAttributesClass",
            "metadata": {"name": _NAME},
            "driverName": _NAME,
            "parameters": {"iops": "4000", "cachingMode": "ReadOnly"},
        }
    )
    values = RUN / "values.json"
    values.write_text(json.dumps(_values(), indent=1))
    command: list[str | Path] = [BIN / "helm", "upgrade", "--install", _RELEASE, _CHART, "--kubeconfig", KUBECONFIG]
    options: list[str | Path] = ["--namespace", _NAMESPACE, "--values", values, "--wait", f"--timeout={_TIMEOUT_S}s"]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)


def _start_server() -> None:
    """The page blob server, which all nodes reach; it takes 2 ms for a request."""
    blobs = RUN / "blobs"
    blobs.mkdir(exist_ok=True)
    server = ("-m", "blobfuse_dysk.testing.server", "--account", f"{_ACCOUNT}={_KEY}", "--latency", "2")
    where = ("--host", network.CONTROL_ADDRESS, "--port", str(_PORT), "--directory", str(blobs))
    CONTROL.spawn("page-blob-server", [sys.executable, *server, *where])


def _values() -> dict[str, object]:
    """The chart's values: images of ours, one class for volumes and one for snapshots."""
    named = {_IN_CHART.get(name, name.removeprefix("csi-")): f"{name}:1" for name in SIDECARS}
    # The key that a test which wants another file system replaces; ext4 does not grow in use without CAP_SYS_RESOURCE.
    parameters = {"container": "volumes", "endpoint": _ENDPOINT, "csi.storage.k8s.io/fstype": "xfs"}
    volumes = {"name": _NAME, "volumeBindingMode": "Immediate", "secret": _SECRET, "parameters": parameters}
    return {
        "image": {"repository": f"{REGISTRY}/csi-dysk", "tag": "1"},
        "sidecars": {"registry": REGISTRY} | {key: image for key, image in named.items() if key},
        "node": {"flexVolume": {"enabled": True, "pluginDir": PLUGINS}},
        "storageClasses": [volumes | {"allowVolumeExpansion": True}],
        "volumeSnapshotClass": {"create": True, "name": _NAME, "deletionPolicy": "Delete", "secret": _SECRET},
    }


# What is not claimed, and why:
# - RWX: one node writes. groupSnapshot: the service takes none of several blobs at one moment.
# - Inline volumes: a blob outlives its pod; the generic ephemeral ones, which come of a class, are tested.
# - singleNodeVolume, topology, volumeLimits, capacity: any node can have any number of blobs, an account tells none.
# - volumeMountGroup: the kubelet changes the group itself. seLinuxMount: there is no SELinux on the machine.
# - snapshotMetadata: its sidecar is not built here; tests/kubernetes makes its calls.
# - Pre-provisioned volumes: the suite has none for an external driver; tests/kubernetes stages and publishes them.
DYSK = Driver(
    name=_NAME,
    namespace=_NAMESPACE,
    image=f"{REGISTRY}/csi-dysk:1",
    controller=f"deployment/{_RELEASE}-controller",
    node=f"daemonset/{_RELEASE}-node",
    install=_install,
    capabilities=COMMON | {"block": True, "capReadOnlyMany": True, "multiplePVsSameID": True},
    own_filesystems=True,
    minimum_size="1Gi",
    # One of the mount, one of the file system. nosuid, nodev and noexec hold on the node only: for a container, runc
    # (1.2 and later) mounts the volume anew, with the flags of its own configuration.
    mount_options=("noatime", "logbufs=4"),
    attributes_class=True,
    flex_volume={"driver": "azure/dysk", "fsType": "xfs", "secretRef": _SECRET},
)
