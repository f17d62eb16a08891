"""A disk with many extents: single pages written all over it, as a file system that was used for years leaves it."""

from __future__ import annotations

import trio

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.credential.resolve import resolve
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.options import AttachOptions

__all__ = ["scatter"]

_PAGE = 512  # bytes
_TASKS = 32
_TIMEOUT_S = 30.0


def scatter(url: str, size: int, count: int) -> None:
    """Write `count` pages, far from each other, to the blob at `url`, which has a SAS that allows it and no lease."""
    trio.run(_scatter, url, size, count)


async def _scatter(url: str, size: int, count: int) -> None:
    address, credential = resolve(DiskAddress.parse(url), AttachOptions())
    step = size // count // _PAGE * _PAGE
    data = b"\xa5" * _PAGE
    offsets = iter(range(0, count * step, step))

    async with BlobClient(address, credential) as client, trio.open_nursery() as nursery:

        async def write() -> None:
            for offset in offsets:  # shared by all tasks
                await client.put_pages(offset, data, lease_id=None, epoch=None, timeout_s=_TIMEOUT_S)

        for _ in range(_TASKS):
            nursery.start_soon(write)
