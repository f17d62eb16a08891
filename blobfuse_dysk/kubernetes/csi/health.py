"""Whether a volume is well, as far as the service can tell: for VolumeCondition, and for what 1.13 has instead.

What only its node knows (fenced, out of reach, worker restarts) the node tells.
"""

from __future__ import annotations

from typing import NamedTuple

from blobfuse_dysk.azure.management import DiskRow
from blobfuse_dysk.disks.look import Disk
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb

__all__ = ["condition", "told"]


class _Fault(NamedTuple):
    """status: of VolumeHealthErrorType. reason: a word for programs. message: for people."""

    status: pb.VolumeHealthErrorType
    reason: str
    message: str


def told(volume_id: str, found: Disk | DiskRow) -> pb.VolumeHealth:
    """What is wrong with it, in the words of 1.13."""
    entries = [pb.VolumeHealth.VolumeHealthEntry(status=s, reason=r, message=m) for s, r, m in _faults(found)]
    return pb.VolumeHealth(volume_id=volume_id, health_statuses=entries)


def condition(found: Disk | DiskRow) -> pb.VolumeCondition:
    """The same, in the words of before."""
    faults = _faults(found)
    return pb.VolumeCondition(abnormal=bool(faults), message="; ".join(each.message for each in faults) or "well")


def _faults(found: Disk | DiskRow) -> list[_Fault]:
    if found.incomplete:
        return [
            _Fault(
                pb.INACCESSIBLE,
                "CloneIncomplete",
                "it is a copy that is not complete yet, so it cannot be attached",
            )
        ]
    return []
