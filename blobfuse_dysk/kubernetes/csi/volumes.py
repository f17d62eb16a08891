"""Controller calls that make, delete and show volumes.

A volume's blob follows from its name, so a call that is repeated finds what the first one made; what it was made for
stands in its metadata (marks.py), so that another request of the same name is told apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from grpc import StatusCode

from blobfuse_dysk.azure.management import DiskRow
from blobfuse_dysk.disks.look import Disk, get_disk, list_disks_page
from blobfuse_dysk.errors import NotFoundError
from blobfuse_dysk.kubernetes.csi import health
from blobfuse_dysk.kubernetes.csi.calls import Context
from blobfuse_dysk.kubernetes.csi.capacity import size_for
from blobfuse_dysk.kubernetes.csi.copies import Copies
from blobfuse_dysk.kubernetes.csi.creation import Wanted, check_same, is_half_made, look, make, source_of
from blobfuse_dysk.kubernetes.csi.modes import check_modes
from blobfuse_dysk.kubernetes.csi.paging import Container, pieces
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.csi.status import CallError
from blobfuse_dysk.kubernetes.csi.tombstones import delete_or_mark, find_volume
from blobfuse_dysk.kubernetes.marks import DELETED, mark
from blobfuse_dysk.kubernetes.parameters import Parameters
from blobfuse_dysk.kubernetes.settings import SUFFIX, delete_settings
from blobfuse_dysk.kubernetes.volume import new_volume, volume_address, with_secret
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.vhd import FOOTER_SIZE

__all__ = ["VolumeCalls", "device_size"]


def device_size(blob_size: int) -> int:
    """Bytes of the device, of a volume of which the last page was not looked at: volumes of ours are whole MiB."""
    return blob_size - FOOTER_SIZE if blob_size % (1 << 20) == FOOTER_SIZE else blob_size


class VolumeCalls:
    """containers: those that are listed, with what the driver itself finds as credential for them."""

    def __init__(self, containers: Sequence[Container]) -> None:
        self._containers = containers
        self._copies = Copies()

    def CreateVolume(self, request: pb.CreateVolumeRequest, context: Context) -> pb.CreateVolumeResponse:
        check_modes(request.volume_capabilities)
        mutable = Parameters.read(request.mutable_parameters, mutable=True)
        parameters = Parameters.read(request.parameters).changed_by(mutable)
        disk, options = new_volume(request.name, parameters, request.secrets)
        wanted = Wanted(request.name, disk, options, parameters, request.capacity_range, source_of(request))
        found = look(wanted)
        if found is not None:
            check_same(found, wanted)
        if wanted.source is None:
            if found is None or is_half_made(found, wanted):
                found = make(wanted, found)
        elif found is None or found.incomplete:
            found = self._copied(wanted, request, context)
        volume = pb.Volume(
            capacity_bytes=found.size,
            volume_id=disk.key,
            volume_context={**parameters.attributes(), "container": disk.container, "blob": disk.blob},
            content_source=request.volume_content_source if wanted.source is not None else None,
        )
        return pb.CreateVolumeResponse(volume=volume)

    def DeleteVolume(self, request: pb.DeleteVolumeRequest, context: Context) -> pb.DeleteVolumeResponse:
        try:
            disk, options = with_secret(volume_address(request.volume_id), request.secrets)
        except NotFoundError:
            return pb.DeleteVolumeResponse()
        if disk.snapshot:
            raise CallError(StatusCode.INVALID_ARGUMENT, f"{disk} is a snapshot", remedy="delete it as one")
        self._copies.stop(disk, options)
        delete_or_mark(disk, options)
        delete_settings(disk, options)
        return pb.DeleteVolumeResponse()

    def ControllerGetVolume(
        self, request: pb.ControllerGetVolumeRequest, context: Context
    ) -> pb.ControllerGetVolumeResponse:
        disk, options = with_secret(volume_address(request.volume_id), {})
        found = find_volume(disk, options)
        status = pb.ControllerGetVolumeResponse.VolumeStatus(
            published_node_ids=_nodes(found), volume_condition=health.condition(found)
        )
        volume = pb.Volume(capacity_bytes=found.size, volume_id=disk.key)
        return pb.ControllerGetVolumeResponse(volume=volume, status=status)

    def ListVolumes(self, request: pb.ListVolumesRequest, context: Context) -> pb.ListVolumesResponse:
        rows, token = pieces(self._containers, request.starting_token, request.max_entries, _rows)
        entries = [
            pb.ListVolumesResponse.Entry(
                volume=pb.Volume(capacity_bytes=device_size(row.size), volume_id=row.disk),
                status=pb.ListVolumesResponse.VolumeStatus(
                    published_node_ids=_nodes(row), volume_condition=health.condition(row)
                ),
            )
            for row in rows
        ]
        return pb.ListVolumesResponse(entries=entries, next_token=token)

    def ControllerGetVolumeHealth(
        self, request: pb.ControllerGetVolumeHealthRequest, context: Context
    ) -> pb.ControllerGetVolumeHealthResponse:
        disk, options = with_secret(volume_address(request.volume_id), request.secrets)
        found = find_volume(disk, options)
        return pb.ControllerGetVolumeHealthResponse(volume_health=health.told(disk.key, found))

    def ControllerListVolumeHealth(
        self, request: pb.ControllerListVolumeHealthRequest, context: Context
    ) -> pb.ControllerListVolumeHealthResponse:
        """Those that are not well; a piece of the list may be without any, and still not be the last."""
        rows, token = pieces(self._containers, request.starting_token, request.max_entries, _rows)
        every = (health.told(row.disk, row) for row in rows)
        return pb.ControllerListVolumeHealthResponse(
            entries=[each for each in every if each.health_statuses], next_token=token
        )

    def _copied(self, wanted: Wanted, request: pb.CreateVolumeRequest, context: Context) -> Disk:
        """Copy the source, or go on with that. Raises CallError(ABORTED) while it is under way."""
        assert wanted.source is not None
        secrets = request.secrets if wanted.source.account == wanted.disk.account else {}
        source, source_options = with_secret(wanted.source, secrets)
        found = get_disk(source, source_options) if source.snapshot else find_volume(source, source_options)
        if wanted.parameters.vhd and not found.vhd:
            raise CallError(StatusCode.INVALID_ARGUMENT, f"the class asks for a VHD, and {source} is none")
        size = size_for(wanted.capacity, vhd=bool(found.vhd), least=found.size)
        self._copies.make(source, source_options, wanted, size, context)
        return find_volume(wanted.disk, wanted.options)


def _rows(container: Container, marker: str, most: int) -> tuple[list[DiskRow], str]:
    rows, after = list_disks_page(container, AttachOptions(), marker=marker, most=most)
    return [row for row in rows if not row.disk.endswith(SUFFIX) and not mark(row.metadata, DELETED)], after


def _nodes(found: Disk | DiskRow) -> list[str]:
    """The nodes that have it, as far as a lease tells: one that only reads has none."""
    return [found.holder] if found.lease_state == "leased" and found.holder else []
