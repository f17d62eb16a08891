"""The drivers that are tried: the stand-in, and csi-dysk with a page blob server beside the control plane."""

from __future__ import annotations

import base64
import sys

from tools.clusterlib import api, network
from tools.clusterlib.control import CONTROL
from tools.clusterlib.driver import Driver
from tools.clusterlib.imagelist import REGISTRY
from tools.clusterlib.node import SHARED
from tools.clusterlib.places import RUN

__all__ = ["DYSK", "STANDIN", "prepare_dysk"]

_COMMON = {
    "persistence": True,
    "fsGroup": True,
    "exec": True,
    "multipods": True,
    "snapshotDataSource": True,
    "pvcDataSource": True,
    "controllerExpansion": True,
    "nodeExpansion": True,
    "offlineExpansion": True,
    "onlineExpansion": True,
    "readWriteOncePod": True,
}

_STANDIN = ("/standin-driver", "--socket=/csi/csi.sock", f"--root={SHARED}", "--node=$(NODE)")
STANDIN = Driver(
    name="standin.cluster.test",
    namespace="standin",
    image=f"{REGISTRY}/standin:1",
    controller=_STANDIN,
    node=_STANDIN,
    host_paths=((SHARED, "None"),),
    own_filesystems=False,
    capabilities=_COMMON,
)

_PORT = 10000
_ACCOUNT = "clusteraccount"
_KEY = base64.b64encode(b"the key of an account that is nowhere but here, 64 bytes long...").decode()
_SECRET, _NAMESPACE = "dysk-account", "csi-dysk"
_SECRET_KINDS = ("provisioner", "controller-publish", "controller-expand", "node-stage", "node-publish", "node-expand")


def _dysk(mode: str) -> tuple[str, ...]:
    return ("dysk-csi", "--mode", mode, "--endpoint", "unix:///csi/csi.sock", "--name", "csi-dysk")


DYSK = Driver(
    name="csi-dysk",
    namespace=_NAMESPACE,
    image=f"{REGISTRY}/csi-dysk:1",
    controller=_dysk("controller"),
    node=_dysk("node"),
    parameters={
        "endpoint": f"http://{network.CONTROL_ADDRESS}:{_PORT}/{_ACCOUNT}",
        "container": "volumes",
        **{
            f"csi.storage.k8s.io/{kind}-secret-{part}": value
            for kind in _SECRET_KINDS
            for part, value in (("name", _SECRET), ("namespace", _NAMESPACE))
        },
    },
    host_paths=(
        ("/dev", "HostToContainer"),
        ("/run/dysk", "Bidirectional"),
        ("/var/lib/dysk", "Bidirectional"),
    ),
    host_pid=True,  # its attachments are processes of the node, which outlive the pod
    capabilities=_COMMON | {"block": True, "capReadOnlyMany": True},
)


def prepare_dysk() -> None:
    """Starts the page blob server, which all nodes reach, and makes the Secret of its account."""
    server = ("-m", "blobfuse_dysk.testing.server", "--account", f"{_ACCOUNT}={_KEY}", "--latency", "2")
    where = ("--host", network.CONTROL_ADDRESS, "--port", str(_PORT), "--directory", str(RUN / "blobs"))
    (RUN / "blobs").mkdir(exist_ok=True)
    CONTROL.spawn("page-blob-server", [sys.executable, *server, *where])
    api.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "azure/dysk",
            "metadata": {"name": _SECRET, "namespace": _NAMESPACE},
            "stringData": {"accountname": _ACCOUNT, "accountkey": _KEY},
        },
    )
