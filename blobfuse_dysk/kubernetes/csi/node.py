"""The Node service: a volume is staged once on a node, and published to each pod. What is done is in staging.py and
publishing.py; here requests become what those take.

Volumes of the original have a secret at NodePublish alone (nodePublishSecretRef), so NodeStage can do nothing for them:
where there is no credential it leaves the volume to NodePublish, which stages what is not staged, or not any more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpc import StatusCode

from blobfuse_dysk import environment
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import NotFoundError
from blobfuse_dysk.kubernetes import publishing
from blobfuse_dysk.kubernetes.csi import nodevolume
from blobfuse_dysk.kubernetes.csi.calls import Context
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.csi.status import CallError
from blobfuse_dysk.kubernetes.mounting import check_flags
from blobfuse_dysk.kubernetes.parameters import Parameters
from blobfuse_dysk.kubernetes.staging import Staging, Wanted, reachable
from blobfuse_dysk.kubernetes.volume import volume_address, with_secret

__all__ = ["PREFIX", "NodeService"]

PREFIX = "csi-"  # of the names of attachments
_Mode = pb.VolumeCapability.AccessMode
_Rpc = pb.NodeServiceCapability.RPC
_CAPABILITIES = (
    _Rpc.STAGE_UNSTAGE_VOLUME,
    _Rpc.GET_VOLUME_STATS,
    _Rpc.EXPAND_VOLUME,
    _Rpc.VOLUME_CONDITION,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
)
_ALPHA = (_Rpc.GET_VOLUME_HEALTH,)  # see controller.py


@dataclass(frozen=True, slots=True)
class _Access:
    """What an access mode means on a node. alone: for one target at a time. The others: see staging.Wanted."""

    read_only: bool = False
    alone: bool = False
    may_read: bool = False


# SINGLE_NODE_WRITER is what kubelets of before 1.22 ask for where several pods of a node share a volume
# (ReadWriteOnce), so it is not `alone`, though the specification would rather have it so.
_ACCESS = {
    _Mode.SINGLE_NODE_WRITER: _Access(),
    _Mode.SINGLE_NODE_SINGLE_WRITER: _Access(alone=True),
    _Mode.SINGLE_NODE_MULTI_WRITER: _Access(),
    _Mode.SINGLE_NODE_READER_ONLY: _Access(read_only=True, alone=True),
    _Mode.MULTI_NODE_READER_ONLY: _Access(read_only=True),
    _Mode.MULTI_NODE_SINGLE_WRITER: _Access(may_read=True),
}


class NodeService:
    """See the specification for what each call must do; calls.py has checked what a request must have.

    alpha: whether what the specification calls so is claimed.
    """

    def __init__(self, staging: Staging | None = None, *, alpha: bool = False) -> None:
        self._staging = staging or Staging(PREFIX)
        self._claimed = (*_CAPABILITIES, *_ALPHA) if alpha else _CAPABILITIES

    def NodeStageVolume(self, request: pb.NodeStageVolumeRequest, context: Context) -> pb.NodeStageVolumeResponse:
        wanted, _ = _wanted(request)
        if request.secrets or reachable(wanted.address, wanted.options):
            self._staging.stage(wanted)
        return pb.NodeStageVolumeResponse()

    def NodeUnstageVolume(self, request: pb.NodeUnstageVolumeRequest, context: Context) -> pb.NodeUnstageVolumeResponse:
        self._staging.unstage(volume_address(request.volume_id).key, _path(request.staging_target_path))
        return pb.NodeUnstageVolumeResponse()

    def NodePublishVolume(self, request: pb.NodePublishVolumeRequest, context: Context) -> pb.NodePublishVolumeResponse:
        if not request.staging_target_path:
            raise CallError(StatusCode.FAILED_PRECONDITION, "the request has no staging_target_path")
        wanted, access = _wanted(request)
        self._refuse_unreachable(wanted, request)
        own = self._staging.stage(wanted)
        publishing.publish(
            own,
            wanted.path,
            _path(request.target_path),
            block=wanted.block,
            read_only=wanted.read_only or request.readonly,
            alone=access.alone,
        )
        return pb.NodePublishVolumeResponse()

    def NodeUnpublishVolume(
        self, request: pb.NodeUnpublishVolumeRequest, context: Context
    ) -> pb.NodeUnpublishVolumeResponse:
        own = self._staging.find(volume_address(request.volume_id).key)
        publishing.unpublish(own, _path(request.target_path))
        return pb.NodeUnpublishVolumeResponse()

    def NodeGetVolumeStats(
        self, request: pb.NodeGetVolumeStatsRequest, context: Context
    ) -> pb.NodeGetVolumeStatsResponse:
        own = self._staging.find(volume_address(request.volume_id).key)
        if not request.volume_path.startswith("/"):
            raise NotFoundError(
                f"{request.volume_id} is not at {request.volume_path!r}", remedy="name an absolute path"
            )
        return nodevolume.stats(own, request.volume_id, _path(request.volume_path))

    def NodeGetVolumeHealth(
        self, request: pb.NodeGetVolumeHealthRequest, context: Context
    ) -> pb.NodeGetVolumeHealthResponse:
        own = self._staging.find(volume_address(request.volume_id).key)
        return nodevolume.health(own, request.volume_id)

    def NodeExpandVolume(self, request: pb.NodeExpandVolumeRequest, context: Context) -> pb.NodeExpandVolumeResponse:
        own = self._staging.find(volume_address(request.volume_id).key)
        return nodevolume.expand(own, request, _path(request.volume_path))

    def NodeGetCapabilities(
        self, request: pb.NodeGetCapabilitiesRequest, context: Context
    ) -> pb.NodeGetCapabilitiesResponse:
        found = [pb.NodeServiceCapability(rpc=_Rpc(type=each)) for each in self._claimed]
        return pb.NodeGetCapabilitiesResponse(capabilities=found)

    def NodeGetInfo(self, request: pb.NodeGetInfoRequest, context: Context) -> pb.NodeGetInfoResponse:
        """No limit: a disk takes no slot of the virtual machine's."""
        return pb.NodeGetInfoResponse(node_id=environment.node_name())

    def _refuse_unreachable(self, wanted: Wanted, request: pb.NodePublishVolumeRequest) -> None:
        if request.secrets or self._staging.find(wanted.disk) or reachable(wanted.address, wanted.options):
            return
        raise CallError(
            StatusCode.FAILED_PRECONDITION,
            f"{wanted.disk} is not staged, and no secret came with the call",
            remedy="name one in the class (csi.storage.k8s.io/node-stage-secret-name) or the volume "
            "(nodeStageSecretRef, nodePublishSecretRef)",
        )


def _wanted(request: Any) -> tuple[Wanted, _Access]:
    """What a NodeStageVolume or NodePublishVolume asks for. Raises CallError or DyskError."""
    capability: pb.VolumeCapability = request.volume_capability
    access = _ACCESS.get(capability.access_mode.mode)
    if access is None:
        name = (
            _Mode.Mode.Name(capability.access_mode.mode) if capability.access_mode.mode in _Mode.Mode.values() else "?"
        )
        raise CallError(
            StatusCode.FAILED_PRECONDITION,
            f"access mode {name}: a disk has one writer",
            remedy="use ReadWriteOnce, ReadWriteOncePod or ReadOnlyMany",
        )
    address = volume_address(request.volume_id)
    _check_context(address, request.volume_context)
    parameters = Parameters.read(request.volume_context).with_settings(request.publish_context)
    address, options = with_secret(address, request.secrets, parameters)
    flags = check_flags(capability.mount.mount_flags)
    read_only = access.read_only or "ro" in flags or request.publish_context.get("readonly") == "true"
    if address.snapshot and not read_only:
        raise CallError(
            StatusCode.FAILED_PRECONDITION, f"{address} is a snapshot", remedy="it can be read only: use ReadOnlyMany"
        )
    mount = parameters.mount_options(capability.mount.fs_type)
    named = capability.mount.fs_type or parameters.fstype
    wanted = Wanted(
        address=address,
        options=replace(options, read_only=read_only),
        path=_path(request.staging_target_path),
        block=capability.WhichOneof("access_type") == "block",
        read_only=read_only,
        unwritten=access.read_only,
        may_read=access.may_read,
        fstype=mount.fstype if named else "auto",
        mkfs_options=mount.mkfs_options or (),
        flags=flags,
    )
    return wanted, access


def _check_context(address: DiskAddress, context: Mapping[str, str]) -> None:
    """The attributes of a volume of the original name the disk once more."""
    for key, name in (("container", address.container), ("blob", address.blob)):
        if context.get(key, name) != name:
            raise NotFoundError(
                f"the volume's id names the {key} {name}, its attributes {context[key]}", remedy="make them the same"
            )


def _path(text: str) -> str:
    """A path as the kernel shows it. Raises CallError for a relative one."""
    if not text.startswith("/"):
        raise CallError(StatusCode.INVALID_ARGUMENT, f"{text!r} is not an absolute path")
    path = Path(os.path.normpath(text))
    return str(path.parent.resolve() / path.name)
