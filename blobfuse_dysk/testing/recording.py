"""RecordingStore: writes down every call that passes."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from blobfuse_dysk.store.contract import Buffer, Extent, Store

__all__ = ["Call", "RecordingStore"]


@dataclass(slots=True)
class Call:
    """name: the method; times are trio.current_time(); ended is None while the call is in flight."""

    name: str
    offset: int = 0
    length: int = 0
    started: float = 0.0
    ended: float | None = None
    error: BaseException | None = None

    @property
    def what(self) -> tuple[str, int, int]:
        """For comparisons in tests."""
        return self.name, self.offset, self.length


class RecordingStore(Store):
    """Passes everything to `inner`; `calls` has what came, in the order in which it came."""

    def __init__(self, inner: Store) -> None:
        self.calls: list[Call] = []
        self._inner = inner

    @property
    def size(self) -> int:
        """The inner one's."""
        return self._inner.size

    def named(self, *names: str) -> list[tuple[str, int, int]]:
        """The calls of these names."""
        return [call.what for call in self.calls if call.name in names]

    async def read(self, offset: int, length: int) -> Buffer:
        """Record, pass."""
        call = self._start("read", offset, length)
        try:
            return await self._inner.read(offset, length)
        except BaseException as error:
            call.error = error
            raise
        finally:
            call.ended = trio.current_time()

    async def write(self, offset: int, data: Buffer) -> None:
        """Record, pass."""
        call = self._start("write", offset, len(data))
        try:
            await self._inner.write(offset, data)
        except BaseException as error:
            call.error = error
            raise
        finally:
            call.ended = trio.current_time()

    async def zero(self, offset: int, length: int) -> None:
        """Record, pass."""
        call = self._start("zero", offset, length)
        try:
            await self._inner.zero(offset, length)
        except BaseException as error:
            call.error = error
            raise
        finally:
            call.ended = trio.current_time()

    async def flush(self) -> None:
        """Record, pass."""
        call = self._start("flush")
        try:
            await self._inner.flush()
        finally:
            call.ended = trio.current_time()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Record, pass."""
        call = self._start("extents", offset, length)
        try:
            return await self._inner.extents(offset, length)
        finally:
            call.ended = trio.current_time()

    async def grow(self, size: int) -> None:
        """Record, pass. length: the new size."""
        call = self._start("grow", 0, size)
        try:
            await self._inner.grow(size)
        except BaseException as error:
            call.error = error
            raise
        finally:
            call.ended = trio.current_time()

    async def aclose(self) -> None:
        """Record, pass."""
        call = self._start("aclose")
        await self._inner.aclose()
        call.ended = trio.current_time()

    def _start(self, name: str, offset: int = 0, length: int = 0) -> Call:
        call = Call(name, offset, length, trio.current_time())
        self.calls.append(call)
        return call
