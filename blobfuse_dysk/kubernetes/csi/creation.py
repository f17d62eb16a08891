"""What a volume is to be, whether one that is there is the same, and how an empty one is made."""

from __future__ import annotations

from dataclasses import dataclass

from grpc import StatusCode

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.create import create_disk
from blobfuse_dysk.disks.delete import delete_disk
from blobfuse_dysk.disks.look import Disk, get_disk
from blobfuse_dysk.errors import DyskError, NotFoundError
from blobfuse_dysk.kubernetes.csi.capacity import fits, size_for
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.csi.status import CallError
from blobfuse_dysk.kubernetes.csi.tombstones import is_deleted
from blobfuse_dysk.kubernetes.marks import SOURCE, VOLUME, encoded, mark
from blobfuse_dysk.kubernetes.parameters import Parameters
from blobfuse_dysk.kubernetes.volume import snapshot_address, volume_address
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.vhd import FOOTER_SIZE

__all__ = ["Wanted", "check_same", "is_half_made", "look", "make", "source_of"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A volume as a request describes it. source: the disk or snapshot that it is a copy of, or None."""

    name: str
    disk: DiskAddress
    options: AttachOptions
    parameters: Parameters
    capacity: pb.CapacityRange
    source: DiskAddress | None

    def marks(self) -> dict[str, str]:
        """Its blob's metadata."""
        marks = {VOLUME: encoded(self.name)}
        return marks if self.source is None else {**marks, SOURCE: encoded(self.source.key)}


def source_of(request: pb.CreateVolumeRequest) -> DiskAddress | None:
    """What the volume is to be made from. Raises NotFoundError, or CallError(INVALID_ARGUMENT)."""
    if not request.HasField("volume_content_source"):
        return None
    content = request.volume_content_source
    if content.HasField("snapshot"):
        return snapshot_address(content.snapshot.snapshot_id)
    if content.HasField("volume"):
        return volume_address(content.volume.volume_id)
    raise CallError(StatusCode.INVALID_ARGUMENT, "volume_content_source is neither a snapshot nor a volume")


def look(wanted: Wanted) -> Disk | None:
    """The blob where the volume belongs, if there is one. Raises DyskError."""
    try:
        return get_disk(wanted.disk, wanted.options)
    except NotFoundError as error:
        if error.missing == "account":
            raise
        return None


def check_same(found: Disk, wanted: Wanted) -> None:
    """Raise CallError(ALREADY_EXISTS) unless a blob that is there is what is wanted."""
    why = None
    if is_deleted(found):
        why = "was deleted, and snapshots of it are still there"
    elif mark(found.metadata, VOLUME) != wanted.name:
        why = "is another's" if mark(found.metadata, VOLUME) else "was not made by this driver"
    elif mark(found.metadata, SOURCE) != (wanted.source.key if wanted.source else ""):
        why = f"was made from {mark(found.metadata, SOURCE) or 'nothing'}"
    elif not found.incomplete and not is_half_made(found, wanted):
        if not fits(found.size, wanted.capacity):
            why = f"has {found.size} bytes, and others were asked for"
        elif wanted.parameters.vhd != found.vhd and wanted.source is None:
            why = "is a VHD" if found.vhd else "is no VHD"
    if why:
        raise CallError(
            StatusCode.ALREADY_EXISTS, f"disk {wanted.disk} is there and {why}", remedy="use another name, or delete it"
        )


def is_half_made(found: Disk, wanted: Wanted) -> bool:
    """Whether it is a VHD whose footer was not written: its maker ended in between."""
    if wanted.source is not None or not wanted.parameters.vhd or found.vhd:
        return False
    return found.blob_size % (1 << 20) == FOOTER_SIZE and found.holder is None and found.lease_state != "leased"


def make(wanted: Wanted, half_made: Disk | None) -> Disk:
    """Make an empty disk. half_made: what an earlier call left. Raises DyskError."""
    size = size_for(wanted.capacity, vhd=wanted.parameters.vhd)
    if half_made is not None:
        if get_disk(wanted.disk, wanted.options, allocated=True).allocated:
            raise CallError(StatusCode.ALREADY_EXISTS, f"disk {wanted.disk} is there, has data, and is no VHD")
        delete_disk(wanted.disk, wanted.options)
    try:
        create_disk(
            wanted.disk,
            size,
            wanted.options,
            vhd=wanted.parameters.vhd,
            tier=wanted.parameters.tier or None,
            metadata=wanted.marks(),
            tags=dict(wanted.parameters.tags),
        )
    except DyskError:
        found = look(wanted)  # by a call whose answer was lost, or of another controller
        if found is None:
            raise
        check_same(found, wanted)
        return found
    return get_disk(wanted.disk, wanted.options)
