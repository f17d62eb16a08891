"""What a VolumeAttributesClass has set for a volume after it was made: iops, mbps, cachingMode, ioTimeout.

A volume's attributes never change, and the metadata of a disk can only be written with its lease, which the node has
that uses it. So such settings are the metadata of a blob beside the disk, of one page, which nobody leases. They
reach a node with the answer to ControllerPublishVolume, so they are in force from the next time on that it is attached.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial

from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.azure.properties import BlobProperties, Condition
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.asking import REQUEST_S, again, run
from blobfuse_dysk.disks.create import create_disk
from blobfuse_dysk.disks.delete import delete_disk
from blobfuse_dysk.errors import NotFoundError
from blobfuse_dysk.kubernetes.parameters import METADATA_PREFIX, Parameters
from blobfuse_dysk.options import AttachOptions

__all__ = ["SUFFIX", "delete_settings", "read_settings", "write_settings"]

SUFFIX = ".dysk-settings"
_SIZE = 512  # bytes: the least that a page blob has


def read_settings(disk: DiskAddress, options: AttachOptions) -> dict[str, str]:
    """What was set for a volume, as `Parameters.with_settings` takes it. One request. Raises DyskError."""
    found = _look(disk, options)
    metadata = found.metadata if found else {}
    return {name.lower(): text for name, text in metadata.items() if name.lower().startswith(METADATA_PREFIX)}


def write_settings(disk: DiskAddress, options: AttachOptions, parameters: Parameters) -> None:
    """Set what `parameters` have; what was set before and is not among them stays. Raises DyskError."""
    given = parameters.settings()
    if not given:
        return
    found = _look(disk, options)
    if found is None:
        create_disk(_beside(disk), _SIZE, options, metadata=given)
        return
    names = {name.lower() for name in given}
    kept = {name: value for name, value in found.metadata.items() if name.lower() not in names}
    address, credential = resolve.resolve(_beside(disk), options)

    async def work() -> None:
        from blobfuse_dysk.azure.blob import BlobClient

        async with BlobClient(address, credential) as client:
            write = partial(
                client.set_metadata,
                {**kept, **given},
                lease_id=None,
                condition=Condition(if_match=found.etag),
                timeout_s=REQUEST_S,
            )
            await again(write, "writing the volume's settings", modifies=True, conditional=True)

    run(address, credential, work, needs="w")


def delete_settings(disk: DiskAddress, options: AttachOptions) -> None:
    """Delete them, if there are any. Raises DyskError."""
    with contextlib.suppress(NotFoundError):
        delete_disk(_beside(disk), options)


def _look(disk: DiskAddress, options: AttachOptions) -> BlobProperties | None:
    from blobfuse_dysk.disks.look import blob_properties

    address, credential = resolve.resolve(_beside(disk), options)
    try:
        return blob_properties(address, credential)
    except NotFoundError:
        return None


def _beside(disk: DiskAddress) -> DiskAddress:
    return replace(disk, blob=f"{disk.blob}{SUFFIX}", snapshot=None)
