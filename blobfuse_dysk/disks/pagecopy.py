"""Copies the pages of a snapshot to a disk of another account: the services do it, this process says which pages.

Each page of the target that is allocated holds what the source's has, since nothing else writes to an unfinished clone,
so what is missing is what is allocated there and not here: whoever goes on needs no list of what was done.

Source: https://learn.microsoft.com/rest/api/storageservices/put-page-from-url
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NoReturn

import trio

from blobfuse_dysk.azure.copysource import CopySource
from blobfuse_dysk.azure.diskclient import DiskClient
from blobfuse_dysk.azure.wire import Extent
from blobfuse_dysk.disks.asking import PATIENCE_S, REQUEST_S, again
from blobfuse_dysk.disks.clonesteps import of_source
from blobfuse_dysk.errors import LaterError, ServiceError
from blobfuse_dysk.store.parts.extents import joined

__all__ = ["PageCopy", "bounded", "missing_in", "pieces_of"]

MOST = 4 << 20  # bytes of one request
_AT_ONCE = 16  # requests
_UNKNOWN = frozenset({"NotImplemented", "APINotImplemented"})
_MOST_RANGES = 1 << 20  # of a disk; of more, close neighbours are copied as one, with the zeros between them


def bounded(ranges: Iterable[Extent]) -> list[Extent]:
    """The same, as a list that fits into memory: of very many ranges some that lie close become one."""
    found: list[Extent] = []
    gap = 0
    for each in ranges:
        found.append(each)
        if len(found) > _MOST_RANGES:
            while len(found) > _MOST_RANGES // 2:
                found, gap = joined(found, gap), max(512, gap * 2)
    return joined(found)


def missing_in(have: Iterable[Extent], wanted: Iterable[Extent]) -> list[Extent]:
    """What is in `wanted` and not in `have`; both sorted and without overlaps."""
    missing: list[Extent] = []
    rest = iter(have)
    there = next(rest, None)
    for offset, length in wanted:
        at, end = offset, offset + length
        while at < end:
            while there is not None and there[0] + there[1] <= at:
                there = next(rest, None)
            if there is None or there[0] >= end:
                missing.append((at, end - at))
                break
            if there[0] > at:
                missing.append((at, there[0] - at))
            at = there[0] + there[1]
    return missing


def pieces_of(ranges: Iterable[Extent]) -> Iterator[Extent]:
    """Pieces that one request can copy."""
    for offset, length in ranges:
        for at in range(offset, offset + length, MOST):
            yield at, min(MOST, offset + length - at)


class PageCopy:
    """Copies ranges of a snapshot to the same places of a clone, several requests at a time.

    client: of the clone, which is written in this epoch. source, link: the snapshot, and how the clone's service is
    told of it. etag: the snapshot's. copied: called with the bytes of each piece. A service that cannot fetch pages
    (Azurite) gets them through this machine.
    """

    def __init__(
        self,
        client: DiskClient,
        source: DiskClient,
        link: CopySource,
        etag: str,
        epoch: int,
        copied: Callable[[int], None],
    ) -> None:
        self._client = client
        self._source = source
        self._link = link
        self._etag = etag
        self._epoch = epoch
        self._copied = copied
        self._fetches = True  # whether the clone's service fetches pages itself

    async def copy(self, ranges: Iterable[Extent]) -> None:
        """Copy them all. Raises DyskError: also if the source has another ETag, or if another epoch began."""
        async with trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[Extent](0)
            async with send, receive:
                for _ in range(_AT_ONCE):
                    nursery.start_soon(self._work, receive.clone())
                for piece in pieces_of(ranges):
                    await send.send(piece)

    async def _work(self, pieces: trio.MemoryReceiveChannel[Extent]) -> None:
        async with pieces:
            async for offset, length in pieces:
                piece, what = partial(self._piece, offset, length), f"copying {length} bytes at {offset}"
                await again(piece, what, modifies=True, budget_s=PATIENCE_S)
                self._copied(length)

    async def _piece(self, offset: int, length: int) -> None:
        try:
            if self._fetches:
                await self._client.put_pages_from(
                    offset,
                    length,
                    await self._link.headers(),
                    source_etag=self._etag,
                    epoch=self._epoch,
                    timeout_s=REQUEST_S,
                )
                return
        except ServiceError as error:
            if error.status != 501 and error.code not in _UNKNOWN:
                self._refused(error)
            self._fetches = False
        data = await self._source.get_range(offset, length, timeout_s=REQUEST_S)
        try:
            await self._client.put_pages(offset, data, lease_id=None, epoch=self._epoch, timeout_s=REQUEST_S)
        except ServiceError as error:
            self._refused(error)

    def _refused(self, error: ServiceError) -> NoReturn:
        """Raise what to say of it: errors of two disks may come in one answer."""
        if told := of_source(error, self._source.address, self._client.address):
            raise told from None
        if error.code == "SequenceNumberConditionNotMet":
            raise LaterError(
                f"another process goes on with clone {self._client.address}",
                remedy="leave it to that, or end that and try again",
            ) from None
        raise error
