"""What the specification requires of requests, whatever a call does: which fields must be there, and how long.

Tables rather than code in each call, so that the controller and the node refuse the same things in the same words.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.message import Message
from grpc import StatusCode

from blobfuse_dysk.kubernetes.csi.proto import csi_pb2
from blobfuse_dysk.kubernetes.csi.status import CallError

__all__ = ["check", "locked", "subject"]

MOST_NAME = 128  # bytes; source: the specification, "Size Limits"
_REQUIRED = {
    "CreateVolumeRequest": ("name", "volume_capabilities"),
    "DeleteVolumeRequest": ("volume_id",),
    "ControllerPublishVolumeRequest": ("volume_id", "node_id", "volume_capability"),
    "ControllerUnpublishVolumeRequest": ("volume_id",),
    "ValidateVolumeCapabilitiesRequest": ("volume_id", "volume_capabilities"),
    "ControllerGetVolumeRequest": ("volume_id",),
    "ControllerModifyVolumeRequest": ("volume_id",),
    "ControllerExpandVolumeRequest": ("volume_id", "capacity_range"),
    "ControllerGetVolumeHealthRequest": ("volume_id",),
    "CreateSnapshotRequest": ("source_volume_id", "name"),
    "DeleteSnapshotRequest": ("snapshot_id",),
    "GetSnapshotRequest": ("snapshot_id",),
    "GetMetadataAllocatedRequest": ("snapshot_id",),
    "GetMetadataDeltaRequest": ("base_snapshot_id", "target_snapshot_id"),
    "NodeStageVolumeRequest": ("volume_id", "staging_target_path", "volume_capability"),
    "NodeUnstageVolumeRequest": ("volume_id", "staging_target_path"),
    "NodePublishVolumeRequest": ("volume_id", "target_path", "volume_capability"),
    "NodeUnpublishVolumeRequest": ("volume_id", "target_path"),
    "NodeGetVolumeStatsRequest": ("volume_id", "volume_path"),
    "NodeExpandVolumeRequest": ("volume_id", "volume_path"),
    "NodeGetVolumeHealthRequest": ("volume_id",),
}
_BANNED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # in names
_NAMED = ("volume_id", "source_volume_id", "snapshot_id", "base_snapshot_id", "name")  # the first says what it is about
_NOT_NEGATIVE = ("max_entries", "max_results")
# Calls that change something, of which there is one at a time for a volume.
_CHANGING = frozenset(name for name in _REQUIRED if not re.match("Validate|Get|[A-Za-z]+Get", name))


def check(request: Message) -> None:
    """Raise CallError(INVALID_ARGUMENT) for a request that lacks what it must have, or has what it must not."""
    for name in _REQUIRED.get(request.DESCRIPTOR.name, ()):
        if not _present(request, name):
            raise _invalid(f"the request has no {name}")
    for field, value in request.ListFields():
        if field.name in ("name", "node_id") and len(value.encode()) > MOST_NAME:
            raise _invalid(f"{field.name} has {len(value.encode())} bytes, and {MOST_NAME} are allowed")
        if field.name == "name" and _BANNED.search(value):
            raise _invalid("name has a control character in it")
        if field.name in _NOT_NEGATIVE and value < 0:
            raise _invalid(f"{field.name} is {value}, which is negative")
        if field.name == "volume_capabilities":
            for each in value:
                _check_capability(each)
        elif field.name == "volume_capability":
            _check_capability(value)
        elif field.name == "capacity_range":
            _check_range(value)


def locked(request: Message) -> tuple[str, ...]:
    """What is to be locked for it, if it changes something; a name where there is no id yet."""
    return (subject(request),) if request.DESCRIPTOR.name in _CHANGING else ()


def subject(request: Message) -> str:
    """The id or name of what it is about, for the log; empty if there is none."""
    known = request.DESCRIPTOR.fields_by_name
    return next((value for name in _NAMED if name in known and (value := getattr(request, name))), "")


def _present(request: Any, name: str) -> bool:
    field = request.DESCRIPTOR.fields_by_name[name]
    if field.message_type is not None and not field.is_repeated:
        return bool(request.HasField(name))
    return bool(getattr(request, name))


def _check_capability(capability: csi_pb2.VolumeCapability) -> None:
    if not capability.WhichOneof("access_type"):
        raise _invalid("a volume capability is neither of a mount nor of a block device")
    if not capability.HasField("access_mode") or not capability.access_mode.mode:
        raise _invalid("a volume capability has no access mode")


def _check_range(wanted: csi_pb2.CapacityRange) -> None:
    if wanted.required_bytes < 0 or wanted.limit_bytes < 0:
        raise _invalid("a capacity is negative")
    if wanted.limit_bytes and wanted.required_bytes > wanted.limit_bytes:
        raise CallError(
            StatusCode.OUT_OF_RANGE,
            f"limit_bytes ({wanted.limit_bytes}) is below required_bytes ({wanted.required_bytes})",
        )


def _invalid(what: str) -> CallError:
    return CallError(StatusCode.INVALID_ARGUMENT, what)
