"""What is read of a disk while it is taken: the map of the region at its end, and its last page.

Whoever attaches a disk asks for both at once: a VHD footer decides how large the device is, and the map what is read
at all. Asked for when the claim is there, they are two requests more that one waits for.

Theory. Both are sent after the answer to the look that the claim begins with (claim.py), so what they show is the blob
at a moment after that look. If the claim rests on that very look (`Claim.rests_on`), all such moments show the same
disk: up to the raise nothing changed the blob, and from then on only this attachment can, which sends no modifying call
before its stack is open. If it does not, whatever was read here is worth nothing and is not looked at.

A list that does not come in one piece, and one that fails, is left to those who read when the disk is open, who know
how to go on and what to say (pageblob.py, sparse.py). So nothing here fails, and nothing waits for longer than a read
would wait for its map.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from blobfuse_dysk.errors import ServiceError, TransportError
from blobfuse_dysk.store.blobapi import BlobApi
from blobfuse_dysk.store.contract import PAGE, Extent
from blobfuse_dysk.store.parts.extents import joined

__all__ = ["Known", "Preview"]

PATIENCE_S = 0.25  # for what has not come when the disk is ours; as READ_PATIENCE_S in sparse.py


@dataclass(frozen=True, slots=True)
class Known:
    """Of a disk as it was claimed. extents: what is allocated from `start` to the blob's end, in bytes, sorted.

    last_page: None if it is not known. A disk that is written to differs from this soon.
    """

    start: int
    extents: tuple[Extent, ...]
    last_page: bytes | None


class Preview:
    """start, size: of the region and of the blob, in bytes. `run` once, beside the claim."""

    def __init__(self, client: BlobApi, *, start: int, size: int, timeout_s: float) -> None:
        self._client = client
        self._start = start
        self._size = size
        self._timeout_s = timeout_s
        self._known: Known | None = None
        self._over = trio.Event()

    async def run(self) -> None:
        """Ask for both, one after the other: a page that is free is not asked for."""
        try:
            await self._read()
        except (ServiceError, TransportError):
            pass  # whoever needs it asks again, and is told why it cannot be had
        finally:
            self._over.set()

    async def known(self) -> Known | None:
        """What has come within PATIENCE_S from now; None if that is nothing."""
        with trio.move_on_after(PATIENCE_S):
            await self._over.wait()
        return self._known

    async def _read(self) -> None:
        start, size, last = self._start, self._size, self._size - PAGE
        found = await self._client.page_ranges(start, size - start, timeout_s=self._timeout_s)
        if found.marker is not None:
            return
        pieces = [(max(offset, start), min(offset + length, size)) for offset, length in found.ranges]
        extents = tuple(joined([(first, end - first) for first, end in pieces if first < end]))
        if not extents or sum(extents[-1]) < size:
            self._known = Known(start, extents, bytes(PAGE))
            return
        self._known = Known(start, extents, None)
        page = bytes(await self._client.get_range(last, PAGE, timeout_s=self._timeout_s))
        if len(page) == PAGE:
            self._known = Known(start, extents, page)
