"""MemoryStore: the contract of store/contract.py in its simplest form. The reference that others are compared with."""

from __future__ import annotations

import trio

from blobfuse_dysk.detached import attach
from blobfuse_dysk.store.contract import PAGE, Buffer, Extent, Store

__all__ = ["MemoryStore"]

_CHUNK = 64 << 10  # bytes


class MemoryStore(Store):
    """A sparse array in memory: what was never written takes none. Every call takes effect in one step."""

    def __init__(self, size: int) -> None:
        assert size > 0 and size % PAGE == 0
        self._size = size
        self._chunks: dict[int, bytearray] = {}

    @property
    def size(self) -> int:
        return self._size

    async def read(self, offset: int, length: int) -> Buffer:
        """Return a copy."""
        await attach()
        await trio.lowlevel.checkpoint()
        return self.peek(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        """Store a copy."""
        await attach()
        await trio.lowlevel.checkpoint()
        self.poke(offset, data)

    async def zero(self, offset: int, length: int) -> None:
        """Forget whole chunks, overwrite the rest."""
        await attach()
        await trio.lowlevel.checkpoint()
        self.wipe(offset, length)

    async def flush(self) -> None:
        """Nothing to do: as durable as it gets here."""
        await attach()
        await trio.lowlevel.checkpoint()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Return exactly the pages that are not all zeros."""
        await trio.lowlevel.checkpoint()
        found: list[Extent] = []
        for index in sorted(self._chunks):
            chunk = self._chunks[index]
            for start in range(0, _CHUNK, PAGE):
                at = index * _CHUNK + start
                if not offset <= at < offset + length or not any(chunk[start : start + PAGE]):
                    continue
                if found and found[-1][0] + found[-1][1] == at:
                    found[-1] = (found[-1][0], found[-1][1] + PAGE)
                else:
                    found.append((at, PAGE))
        return found

    async def grow(self, size: int) -> None:
        """Grow, in one step."""
        await trio.lowlevel.checkpoint()
        self.resize(size)

    async def aclose(self) -> None:
        """Nothing to free; the content stays for a test to look at."""
        await trio.lowlevel.checkpoint()

    def resize(self, size: int) -> None:
        """Without awaiting; what is cut off is gone."""
        assert size > 0 and size % PAGE == 0
        if size < self._size:
            self.wipe(size, self._size - size)
        self._size = size

    def peek(self, offset: int, length: int) -> bytes:
        """Read without awaiting, at any alignment."""
        data = bytearray(length)
        for index, start, at, size in _cut(offset, length):
            chunk = self._chunks.get(index)
            if chunk is not None:
                data[at : at + size] = chunk[start : start + size]
        return bytes(data)

    def poke(self, offset: int, data: Buffer) -> None:
        """Write without awaiting, at any alignment."""
        view = memoryview(data)
        for index, start, at, size in _cut(offset, len(view)):
            chunk = self._chunks.setdefault(index, bytearray(_CHUNK))
            chunk[start : start + size] = view[at : at + size]

    def wipe(self, offset: int, length: int) -> None:
        """Zero without awaiting."""
        first, last = offset // _CHUNK, (offset + length - 1) // _CHUNK
        for index in [index for index in self._chunks if first <= index <= last]:
            start, end = max(offset, index * _CHUNK), min(offset + length, (index + 1) * _CHUNK)
            if end - start == _CHUNK:
                del self._chunks[index]
            else:
                self._chunks[index][start - index * _CHUNK : end - index * _CHUNK] = bytes(end - start)


def _cut(offset: int, length: int) -> list[tuple[int, int, int, int]]:
    """The range by chunks: (chunk, start in the chunk, start in the range, size)."""
    pieces = []
    done = 0
    while done < length:
        index, start = divmod(offset + done, _CHUNK)
        size = min(_CHUNK - start, length - done)
        pieces.append((index, start, done, size))
        done += size
    return pieces
