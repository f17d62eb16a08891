"""The Controller service: what can be done to volumes from anywhere, and what of it is claimed.

Which calls there are is in the files that this one puts together: volumes.py, publishing.py, changes.py, snapshots.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from blobfuse_dysk.kubernetes.csi.calls import Context
from blobfuse_dysk.kubernetes.csi.changes import ChangeCalls
from blobfuse_dysk.kubernetes.csi.paging import Container
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.csi.publishing import PublishCalls
from blobfuse_dysk.kubernetes.csi.snapshots import SnapshotCalls
from blobfuse_dysk.kubernetes.csi.volumes import VolumeCalls

__all__ = ["ControllerService"]

_Rpc = pb.ControllerServiceCapability.RPC
_ALWAYS = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.PUBLISH_UNPUBLISH_VOLUME,
    _Rpc.CREATE_DELETE_SNAPSHOT,
    _Rpc.CLONE_VOLUME,
    _Rpc.EXPAND_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    _Rpc.MODIFY_VOLUME,
)
# Calls that bring no secret: they need containers that the driver has a credential of its own for.
_WITH_CONTAINERS = (
    _Rpc.LIST_VOLUMES,
    _Rpc.LIST_VOLUMES_PUBLISHED_NODES,
    _Rpc.LIST_SNAPSHOTS,
    _Rpc.GET_VOLUME,
    _Rpc.VOLUME_CONDITION,
)
# What the specification calls alpha and has since 1.11 and 1.13. Side-cars ask only where a feature gate is on, and
# some programs take capabilities that they do not know for faults.
_ALPHA = (_Rpc.GET_SNAPSHOT, _Rpc.GET_VOLUME_HEALTH)


class ControllerService(VolumeCalls, PublishCalls, ChangeCalls, SnapshotCalls):
    """containers: those that can be listed. alpha: whether what the specification calls so is claimed."""

    def __init__(self, containers: Sequence[Container], *, alpha: bool) -> None:
        VolumeCalls.__init__(self, containers)
        SnapshotCalls.__init__(self, containers)
        claimed = list(_ALWAYS)
        claimed += _WITH_CONTAINERS if containers else ()
        claimed += _ALPHA if alpha else ()
        claimed += [_Rpc.LIST_VOLUME_HEALTH] if alpha and containers else []
        self._capabilities = [pb.ControllerServiceCapability(rpc=_Rpc(type=each)) for each in claimed]

    def ControllerGetCapabilities(
        self, request: pb.ControllerGetCapabilitiesRequest, context: Context
    ) -> pb.ControllerGetCapabilitiesResponse:
        return pb.ControllerGetCapabilitiesResponse(capabilities=self._capabilities)
