"""The SnapshotMetadata service: what of a snapshot is in use, and what changed between two, for incremental backups.

Ranges are the service's own page maps, streamed as they come: a backup reads only what is named here. Those that were
cleared are told as changed, too: they read as zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from grpc import StatusCode

from blobfuse_dysk.disks.ranges import allocated_ranges, changed_ranges, measure
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.kubernetes.csi.calls import Context
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.csi.status import CallError
from blobfuse_dysk.kubernetes.volume import snapshot_address, with_secret

__all__ = ["SnapshotMetadataService"]

_AT_ONCE = 4096  # ranges in a message: 80 KiB or so
_PAGE = 512  # bytes


class SnapshotMetadataService:
    """Each of its streams ends when the other side takes no more of it."""

    def GetMetadataAllocated(
        self, request: pb.GetMetadataAllocatedRequest, context: Context
    ) -> Iterator[pb.GetMetadataAllocatedResponse]:
        snapshot, options = with_secret(snapshot_address(request.snapshot_id), request.secrets)
        size = measure(snapshot, options).size
        start = _start(request.starting_offset, size)
        ranges = allocated_ranges(snapshot, options, start=start)
        for blocks in _messages(ranges, request.max_results, start):
            yield pb.GetMetadataAllocatedResponse(
                block_metadata_type=pb.VARIABLE_LENGTH, volume_capacity_bytes=size, block_metadata=blocks
            )

    def GetMetadataDelta(
        self, request: pb.GetMetadataDeltaRequest, context: Context
    ) -> Iterator[pb.GetMetadataDeltaResponse]:
        base = snapshot_address(request.base_snapshot_id)
        target = snapshot_address(request.target_snapshot_id)
        if replace(base, snapshot=None) != replace(target, snapshot=None):
            raise CallError(
                StatusCode.INVALID_ARGUMENT, "the two snapshots are of different volumes", remedy="name two of one"
            )
        if (base.snapshot or "") > (target.snapshot or ""):
            raise CallError(StatusCode.INVALID_ARGUMENT, "the base is newer than the target", remedy="swap them")
        target, options = with_secret(target, request.secrets)
        measure(replace(target, snapshot=base.snapshot), options)
        size = measure(target, options).size
        start = _start(request.starting_offset, size)
        try:
            ranges = changed_ranges(target, base.snapshot or "", options, start=start)
        except UsageError as error:  # a service that does not know
            raise CallError(StatusCode.FAILED_PRECONDITION, str(error), remedy=error.remedy) from error
        plain = ((offset, length) for offset, length, _ in ranges)
        for blocks in _messages(plain, request.max_results, start):
            yield pb.GetMetadataDeltaResponse(
                block_metadata_type=pb.VARIABLE_LENGTH, volume_capacity_bytes=size, block_metadata=blocks
            )


def _start(offset: int, size: int) -> int:
    """Where to begin. Raises CallError(OUT_OF_RANGE) outside of the volume."""
    if not 0 <= offset <= size:
        raise CallError(StatusCode.OUT_OF_RANGE, f"starting_offset {offset} is not within the volume's {size} bytes")
    return offset // _PAGE * _PAGE


def _messages(ranges: Iterable[tuple[int, int]], most: int, start: int) -> Iterator[list[pb.BlockMetadata]]:
    """The ranges in lists of at most `most` (0: ours); one empty list where there is none, which tells the size.

    The first may begin before `start`, but it does not end there.
    """
    rest = iter(ranges)
    at_once = min(most or _AT_ONCE, _AT_ONCE)
    first = True
    while blocks := [pb.BlockMetadata(byte_offset=at, size_bytes=length) for at, length in islice(rest, at_once)]:
        first = False
        yield blocks
    if first:
        yield []
