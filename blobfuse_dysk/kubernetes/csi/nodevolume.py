"""What is asked of a volume that is on this node: how full it is, how it is, to become larger."""

from __future__ import annotations

import os
from pathlib import Path

from grpc import StatusCode

from blobfuse_dysk import live
from blobfuse_dysk.errors import NotFoundError
from blobfuse_dysk.kubernetes.condition import Condition, condition_of
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.csi.status import CallError
from blobfuse_dysk.kubernetes.own import Own
from blobfuse_dysk.mount.grow import grow_file_system
from blobfuse_dysk.mount.tools import top_mount

__all__ = ["expand", "health", "stats"]

_Entry = pb.VolumeHealth.VolumeHealthEntry
_KINDS = {"degraded": pb.DEGRADED, "inaccessible": pb.INACCESSIBLE, "data loss": pb.DATA_LOSS}
_SECTOR = 512  # a page blob's sizes are multiples of it


def stats(own: Own | None, volume_id: str, path: str) -> pb.NodeGetVolumeStatsResponse:
    """Bytes and inodes of what is mounted at `path`; for a raw block device its size."""
    own = _on(own, volume_id, path)
    attached = own.attachment
    condition = _condition(own)
    response = pb.NodeGetVolumeStatsResponse(
        volume_condition=pb.VolumeCondition(abnormal=condition.kind is not None, message=condition.message)
    )
    if _is_block(own, path):
        response.usage.add(unit=pb.VolumeUsage.BYTES, total=attached.size)
        return response
    try:
        found = os.statvfs(path)
    except OSError:  # of a disk that failed: the condition says it
        return response
    unit = found.f_frsize
    response.usage.add(
        unit=pb.VolumeUsage.BYTES,
        total=found.f_blocks * unit,
        used=(found.f_blocks - found.f_bfree) * unit,
        available=found.f_bavail * unit,
    )
    if found.f_files:  # btrfs has no number of them
        response.usage.add(
            unit=pb.VolumeUsage.INODES,
            total=found.f_files,
            used=found.f_files - found.f_ffree,
            available=found.f_favail,
        )
    return response


def health(own: Own | None, volume_id: str) -> pb.NodeGetVolumeHealthResponse:
    """The same condition, as the specification has it from 1.13 on: nothing where all is well."""
    if own is None:
        raise _absent(volume_id)
    condition, found = _condition(own), pb.VolumeHealth(volume_id=volume_id)
    if condition.kind is not None:
        entry = _Entry(status=_KINDS[condition.kind], reason=condition.reason, message=condition.message)
        found.health_statuses.append(entry)
    return pb.NodeGetVolumeHealthResponse(volume_health=found)


def expand(own: Own | None, request: pb.NodeExpandVolumeRequest, path: str) -> pb.NodeExpandVolumeResponse:
    """Make the disk as large as is asked for, unless it is already, and the file system as large as the disk."""
    own = _on(own, request.volume_id, path)
    attached = own.attachment
    size = max(attached.size, -(-request.capacity_range.required_bytes // _SECTOR) * _SECTOR)
    limit = request.capacity_range.limit_bytes
    if limit and size > limit:
        raise CallError(
            StatusCode.OUT_OF_RANGE, f"{attached.disk} would have {size} bytes, more than limit_bytes ({limit})"
        )
    if attached.is_lost:
        raise CallError(StatusCode.FAILED_PRECONDITION, f"it does not become larger: {attached.trouble}")
    if attached.read_only:
        if size > attached.size:
            raise CallError(
                StatusCode.FAILED_PRECONDITION,
                f"{attached.disk} is attached on this node for reading only",
                remedy="expand it where it is written to, or where it is not used",
            )
        return pb.NodeExpandVolumeResponse(capacity_bytes=attached.size)
    if size > attached.size:
        live.grow(attached.name, size)
    if not _is_block(own, path):
        top = top_mount(path)
        assert top and own.device
        grow_file_system(own.device, path, top.fstype)
    return pb.NodeExpandVolumeResponse(capacity_bytes=size)


def _on(own: Own | None, volume_id: str, path: str) -> Own:
    """The attachment, if it really is at this path. Raises NotFoundError."""
    if own is None or not own.shows(top_mount(path)):
        raise _absent(volume_id, f" at {path}")
    return own


def _is_block(own: Own, path: str) -> bool:
    try:
        return own.is_node(Path(path).stat())
    except OSError:  # of a file system, which xfs is no more to be asked of once its disk failed
        return False


def _absent(volume_id: str, where: str = "") -> NotFoundError:
    return NotFoundError(f"volume {volume_id} is not on this node{where}", remedy="stage and publish it first")


def _condition(own: Own) -> Condition:
    return condition_of(own.attachment, own.fields["lost"])
