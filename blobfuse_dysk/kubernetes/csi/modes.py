"""Access modes: which there are, which of them only read, which let one node only."""

from __future__ import annotations

from collections.abc import Iterable

from grpc import StatusCode

from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.csi.status import CallError
from blobfuse_dysk.kubernetes.parameters import Parameters

__all__ = ["MODES", "check_modes", "is_for_one_node", "only_reads", "why_not"]

_Mode = pb.VolumeCapability.AccessMode
MODES = (
    _Mode.SINGLE_NODE_WRITER,
    _Mode.SINGLE_NODE_READER_ONLY,
    _Mode.MULTI_NODE_READER_ONLY,
    _Mode.MULTI_NODE_SINGLE_WRITER,
    _Mode.SINGLE_NODE_SINGLE_WRITER,
    _Mode.SINGLE_NODE_MULTI_WRITER,
)
_FOR_ONE = (
    _Mode.SINGLE_NODE_WRITER,
    _Mode.SINGLE_NODE_READER_ONLY,
    _Mode.SINGLE_NODE_SINGLE_WRITER,
    _Mode.SINGLE_NODE_MULTI_WRITER,
)
_READ = (_Mode.SINGLE_NODE_READER_ONLY, _Mode.MULTI_NODE_READER_ONLY)


def is_for_one_node(capability: pb.VolumeCapability) -> bool:
    """Whether the volume may be on one node only."""
    return capability.access_mode.mode in _FOR_ONE


def only_reads(capability: pb.VolumeCapability) -> bool:
    """Whether nobody may write."""
    return capability.access_mode.mode in _READ


def why_not(capabilities: Iterable[pb.VolumeCapability]) -> str:
    """Why a volume of this driver cannot have all of these; '' if it can."""
    for each in capabilities:
        if each.access_mode.mode not in MODES:
            if each.access_mode.mode == _Mode.MULTI_NODE_MULTI_WRITER:
                return "a disk has one writer at a time, so it cannot be mounted for writing on several nodes"
            return f"access mode {each.access_mode.mode} is not known"
        if each.mount.fs_type:
            try:
                Parameters().mount_options(each.mount.fs_type)
            except UsageError as error:
                return error.line()
    return ""


def check_modes(capabilities: Iterable[pb.VolumeCapability]) -> None:
    """Raise CallError(INVALID_ARGUMENT) unless a volume can have all of these."""
    if why := why_not(capabilities):
        raise CallError(StatusCode.INVALID_ARGUMENT, why)
