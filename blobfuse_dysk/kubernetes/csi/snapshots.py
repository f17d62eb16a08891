"""Controller calls about snapshots. A snapshot's id is its volume's with `?snapshot=TIME`, its name in its metadata."""

from __future__ import annotations

import calendar
import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.look import get_disk
from blobfuse_dysk.disks.snapshot import (
    NAME,
    Snapshot,
    create_snapshot,
    delete_snapshot,
    list_snapshots,
    list_snapshots_page,
)
from blobfuse_dysk.errors import NotFoundError
from blobfuse_dysk.kubernetes.csi.calls import Context
from blobfuse_dysk.kubernetes.csi.paging import Container, pieces
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.csi.status import CallError
from blobfuse_dysk.kubernetes.csi.tombstones import find_volume, remove_if_last
from blobfuse_dysk.kubernetes.csi.volumes import device_size
from blobfuse_dysk.kubernetes.marks import encoded, mark
from blobfuse_dysk.kubernetes.parameters import check_snapshot_parameters
from blobfuse_dysk.kubernetes.volume import snapshot_address, volume_address, with_secret
from blobfuse_dysk.options import AttachOptions

__all__ = ["SnapshotCalls", "creation_time"]

# Ends with a UUID: external-snapshotter names a snapshot after the UID of its VolumeSnapshot, which is of one volume.
_OF_ONE_REQUEST = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")


class SnapshotCalls:
    """containers: those that are listed where nobody says of which volume."""

    def __init__(self, containers: Sequence[Container]) -> None:
        self._containers = containers

    def CreateSnapshot(self, request: pb.CreateSnapshotRequest, context: Context) -> pb.CreateSnapshotResponse:
        check_snapshot_parameters(request.parameters)
        disk, options = with_secret(volume_address(request.source_volume_id), request.secrets)
        if disk.snapshot:
            raise CallError(StatusCode.INVALID_ARGUMENT, f"{disk} is a snapshot itself")
        find_volume(disk, options)
        found = _named(disk, options, request.name)
        if found is None:
            found = create_snapshot(disk, options, metadata={NAME: encoded(request.name)})
        return pb.CreateSnapshotResponse(snapshot=_told(found.disk, found.size))

    def DeleteSnapshot(self, request: pb.DeleteSnapshotRequest, context: Context) -> pb.DeleteSnapshotResponse:
        try:
            snapshot, options = with_secret(snapshot_address(request.snapshot_id), request.secrets)
        except NotFoundError:
            return pb.DeleteSnapshotResponse()
        with contextlib.suppress(NotFoundError):
            delete_snapshot(snapshot, options)
        remove_if_last(replace(snapshot, snapshot=None), options)
        return pb.DeleteSnapshotResponse()

    def GetSnapshot(self, request: pb.GetSnapshotRequest, context: Context) -> pb.GetSnapshotResponse:
        snapshot, options = with_secret(snapshot_address(request.snapshot_id), request.secrets)
        return pb.GetSnapshotResponse(snapshot=_told(snapshot, get_disk(snapshot, options).blob_size))

    def ListSnapshots(self, request: pb.ListSnapshotsRequest, context: Context) -> pb.ListSnapshotsResponse:
        if request.snapshot_id:
            found, token = _one(request), ""
        elif request.source_volume_id:
            found, token = _of_volume(request)
        else:
            found, token = pieces(self._containers, request.starting_token, request.max_entries, _page)
        entries = [pb.ListSnapshotsResponse.Entry(snapshot=each) for each in found]
        return pb.ListSnapshotsResponse(entries=entries, next_token=token)


def creation_time(time_of_snapshot: str) -> Timestamp:
    """The moment that names a snapshot, as the service writes it: `2026-01-31T12:00:00.1234567Z`."""
    moment, _, fraction = time_of_snapshot.rstrip("Z").partition(".")
    seconds = calendar.timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%S"))
    return Timestamp(seconds=seconds, nanos=int(f"{fraction:0<9}"[:9]))


def _told(disk: DiskAddress, blob_size: int) -> pb.Snapshot:
    """A snapshot is complete as soon as it is there."""
    return pb.Snapshot(
        size_bytes=device_size(blob_size),
        snapshot_id=disk.key,
        source_volume_id=replace(disk, snapshot=None).key,
        creation_time=creation_time(disk.snapshot or ""),
        ready_to_use=True,
    )


def _named(disk: DiskAddress, options: AttachOptions, name: str) -> Snapshot | None:
    """The snapshot of this name, if there is one; CallError(ALREADY_EXISTS) if it is of another volume there.

    One list of the volume's own tells it for names that Kubernetes gives; for others all of the container is looked at.
    """
    own = [each for each in list_snapshots(disk, options) if mark(each.metadata, NAME) == name]
    if own:
        return own[0]
    if _OF_ONE_REQUEST.search(name):
        return None
    for each in list_snapshots(replace(disk, blob=""), options, prefix_of_container=True):
        if mark(each.metadata, NAME) == name:
            raise CallError(
                StatusCode.ALREADY_EXISTS,
                f"snapshot {name!r} is there, and is of volume {replace(each.disk, snapshot=None)}",
                remedy="use another name",
            )
    return None


def _one(request: pb.ListSnapshotsRequest) -> list[pb.Snapshot]:
    try:
        snapshot, options = with_secret(snapshot_address(request.snapshot_id), request.secrets)
        if request.source_volume_id not in ("", replace(snapshot, snapshot=None).key):
            return []
        return [_told(snapshot, get_disk(snapshot, options).blob_size)]
    except NotFoundError:
        return []


def _of_volume(request: pb.ListSnapshotsRequest) -> tuple[list[pb.Snapshot], str]:
    """A token is the time of the last one that was told."""
    if request.starting_token and not re.fullmatch(r"[0-9TZ:.-]+", request.starting_token):
        raise CallError(StatusCode.ABORTED, "starting_token is none of this list", remedy="begin anew")
    try:
        disk, options = with_secret(volume_address(request.source_volume_id), request.secrets)
        every = list_snapshots(disk, options)
    except NotFoundError:
        return [], ""
    left = [each for each in every if each.time > request.starting_token]
    told = left[: request.max_entries or len(left)]
    token = told[-1].time if len(told) < len(left) else ""
    return [_told(each.disk, each.size) for each in told], token


def _page(container: Container, marker: str, most: int) -> tuple[list[pb.Snapshot], str]:
    found, after = list_snapshots_page(container, AttachOptions(), marker=marker or None, most=most)
    return [_told(each.disk, each.size) for each in found], after or ""
