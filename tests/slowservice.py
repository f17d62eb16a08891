"""A store that is slow, checks its callers, and can break: what caches are tested over."""

from __future__ import annotations

import random

import trio

from blobfuse_dysk.detached import attach
from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.contract import PAGE, Buffer, Extent, Store

SIZE = 16 << 20


class SlowService(Store):
    """Pages in memory, each request taking `latency_s` or a random time; asserts that none overlap in flight."""

    def __init__(self, seed: int = 0, latency_s: float = 0.002, size: int = SIZE) -> None:
        self.image = bytearray(size)
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []
        self.zeros: list[tuple[int, int]] = []
        self.broken = False
        self._random = random.Random(seed)
        self._latency_s = latency_s
        self._flight: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        return len(self.image)

    async def _take(self, offset: int, length: int) -> None:
        await attach()
        for low, high in self._flight:
            assert high <= offset or offset + length <= low, "overlapping modifying calls in flight"
        self._flight.append((offset, offset + length))
        try:
            await trio.sleep(self._latency_s * self._random.uniform(0.2, 3))
            if self.broken:
                raise StoreError("the service is gone", Kind.TIMEOUT, unknown=True)
        finally:
            self._flight.remove((offset, offset + length))

    async def read(self, offset: int, length: int) -> Buffer:
        self.reads.append((offset, length))
        # Content as of the beginning: the oldest that a service may answer with.
        image = bytes(self.image[offset : offset + length])
        await attach()
        await trio.sleep(self._latency_s * self._random.uniform(0.2, 3))
        return image

    async def write(self, offset: int, data: Buffer) -> None:
        content = bytes(data)
        await self._take(offset, len(data))
        assert bytes(data) == content, "data in flight was overwritten"
        self.image[offset : offset + len(content)] = content
        self.writes.append((offset, len(content)))

    async def zero(self, offset: int, length: int) -> None:
        await self._take(offset, length)
        self.image[offset : offset + length] = bytes(length)
        self.zeros.append((offset, length))

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        found = [p for p in range(offset, offset + length, PAGE) if any(self.image[p : p + PAGE])]
        await trio.sleep(self._latency_s)
        return [(p, PAGE) for p in found]

    async def grow(self, size: int) -> None:
        await trio.sleep(self._latency_s)
        self.image += bytes(size - self.size)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
