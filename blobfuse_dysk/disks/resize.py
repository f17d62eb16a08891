"""Another size for a disk: in use on this machine, with the file system that is mounted on it, or attached nowhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

from blobfuse_dysk import attachment, environment, live
from blobfuse_dysk.attachment import Attachment
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.device.worker.geometry import Geometry
from blobfuse_dysk.disk import DiskAddress, format_size, names_disk
from blobfuse_dysk.errors import AttachedError, DeviceError, DyskError, UsageError
from blobfuse_dysk.mount.grow import GROWING, grow_file_system
from blobfuse_dysk.mount.tools import top_mount
from blobfuse_dysk.options import AttachOptions

__all__ = ["Resized", "resize"]

_MIB = 1 << 20
_DEFAULTS = AttachOptions()


@dataclass(frozen=True, slots=True)
class Resized:
    """size, before: of the device, in bytes. attached: whether it is in use here, under `name`.

    file_system: what is mounted on the whole device, None if nothing is. grown: whether that became larger.
    partitions: how many there are; they stay as they are.
    """

    disk: str
    size: int
    before: int
    attached: bool
    name: str | None = None
    file_system: str | None = None
    grown: bool = False
    partitions: int = 0


def resize(
    target: str | DiskAddress,
    size: int,
    options: AttachOptions = _DEFAULTS,
    *,
    by: bool = False,
    force: bool = False,
) -> Resized:
    """Make a disk `size` bytes large; an attachment here (name, device, disk), or a disk that is attached nowhere.

    by: `size` is what it grows by. force: it may become smaller, if it is attached nowhere and what is cut off is
    empty. options: how to reach the account, for one that is not attached here. One of this size already is no error,
    and what was interrupted is finished by the same call again.

    Raises LeasedError if another node has it; DeviceError if the device has grown, and its file system has not: the
    message says both; else a DyskError, and nothing changed or it can be asked for again.
    """
    found = _attached(target)
    if found is not None:
        return _in_use(found, size, by)
    disk = DiskAddress.parse(target) if isinstance(target, str) else target
    if disk.snapshot:
        raise UsageError("a snapshot keeps its size", remedy="name the disk without ?snapshot=")
    return _detached(disk, size, options, by=by, force=force)


def _attached(target: str | DiskAddress) -> Attachment | None:
    """The attachment here through which the disk is written to; None if there is none."""
    if isinstance(target, DiskAddress) or names_disk(target):
        key = (DiskAddress.parse(target) if isinstance(target, str) else target).key
        all_of_it = [found for found in attachment.attachments() if found.disk == key and found.state != "dead"]
        return next((found for found in all_of_it if not found.read_only), None)
    found = attachment.get(target)
    if found.state == "dead":
        raise DeviceError(f"{found.name} is dead", remedy=f"dyskctl detach {found.name}, then name the disk")
    if found.read_only:
        raise AttachedError(f"{found.name} is read-only here", remedy=f"name the disk: dyskctl resize {found.disk}")
    return found


def _in_use(found: Attachment, size: int, by: bool) -> Resized:
    wanted = found.size + size if by else size
    _check_vhd(wanted, vhd=found.vhd)
    if wanted < found.size:
        raise UsageError(
            f"{found.name} has {found.size} bytes, and {wanted} are fewer",
            remedy=f"a disk in use only grows; first: dyskctl detach {found.name}",
        )
    live.grow(found.name, wanted)
    resized = Resized(found.disk, wanted, found.size, True, found.name, partitions=len(found.partitions))
    mounted = next(iter(found.mountpoints), None)
    entry = top_mount(mounted) if mounted and not found.partitions else None
    if entry is None or found.device is None:
        return resized
    grown = False
    if entry.fstype in GROWING:
        try:
            grown = grow_file_system(found.device, entry.directory, entry.fstype)
        except DyskError as error:
            what = f"{found.name} has grown to {format_size(wanted)}, the {entry.fstype} on it has not: {error}"
            raise DeviceError(what, remedy=error.remedy) from error
    return replace(resized, file_system=entry.fstype, grown=grown)


def _detached(disk: DiskAddress, size: int, options: AttachOptions, *, by: bool, force: bool) -> Resized:
    import trio

    from blobfuse_dysk.disks.asking import waiting
    from blobfuse_dysk.disks.detached import resize_detached

    address, credential = resolve.resolve(disk, options)
    address.refuse_secondary("")

    def wanted(found: Geometry) -> int:
        to = found.size + size if by else size
        _check_vhd(to, vhd=found.vhd)
        return to

    async def run() -> tuple[int, int]:
        return await resize_detached(address, credential, wanted, node=environment.node_name(), force=force)

    with waiting(address):
        before, after = trio.run(run)
    return Resized(str(disk), after, before, False)


def _check_vhd(size: int, *, vhd: bool) -> None:
    """Azure takes VHDs of whole MiB only."""
    if vhd and size % _MIB:
        raise UsageError(
            f"{size} bytes are no whole number of MiB, as a VHD has for Azure", remedy=f"use {-(-size // _MIB)}MiB"
        )
