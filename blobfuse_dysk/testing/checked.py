"""CheckedStore: asserts the contract of store/contract.py at the boundary between two layers.

Put it between any two layers in a test; a broken rule is an AssertionError that names rule and call. Numbers in the
messages are the points of the contract.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import trio

from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.contract import MAX_WRITE, PAGE, Buffer, Extent, Store

__all__ = ["CheckedStore"]


class CheckedStore(Store):
    """Passes everything to `inner`.

    overlaps: True above Order, where overlapping modifying calls may be in flight together.
    """

    def __init__(self, inner: Store, *, overlaps: bool = False) -> None:
        self._inner = inner
        self._overlaps = overlaps
        self._modifying: list[tuple[int, int]] = []
        self._closed = False
        self._growing = False

    @property
    def size(self) -> int:
        """The inner one's."""
        return self._inner.size

    async def read(self, offset: int, length: int) -> Buffer:
        """Check the range, and that as many bytes come back."""
        self._check("read", offset, length)
        with self._only_store_errors("read"):
            data = await self._inner.read(offset, length)
        assert len(data) == length, f"read({offset}, {length}) returned {len(data)} bytes"
        assert isinstance(data, bytes | bytearray | memoryview), f"read returned a {type(data).__name__}"
        return data

    async def write(self, offset: int, data: Buffer) -> None:
        """Check the range, the size, that nothing overlaps, and that the buffer is not changed meanwhile (6)."""
        length = len(data)
        self._check("write", offset, length)
        assert length <= MAX_WRITE, f"write of {length} bytes, above {MAX_WRITE}"
        before = bytes(data)
        with self._exclusive("write", offset, length), self._only_store_errors("write"):
            await self._inner.write(offset, data)
        assert bytes(data) == before, f"6: the buffer given to write({offset}, {length}) was changed before it returned"

    async def zero(self, offset: int, length: int) -> None:
        """Check the range, and that nothing overlaps."""
        self._check("zero", offset, length)
        with self._exclusive("zero", offset, length), self._only_store_errors("zero"):
            await self._inner.zero(offset, length)

    async def flush(self) -> None:
        """Check that the store is open."""
        self._open("flush")
        with self._only_store_errors("flush"):
            await self._inner.flush()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Check the range, and that the answer is sorted, disjoint, aligned and clipped."""
        self._check("extents", offset, length)
        with self._only_store_errors("extents"):
            found = await self._inner.extents(offset, length)
        end = offset
        for start, size in found:
            assert start >= end and size > 0, f"extents are not sorted and disjoint: {found}"
            assert start % PAGE == 0 and size % PAGE == 0, f"extents are not whole pages: {found}"
            end = start + size
        assert end <= offset + length, f"extents beyond [{offset}, {offset + length}): {found}"
        return found

    async def grow(self, size: int) -> None:
        """Check the size, that there is one grow at a time, and what becomes of the size (8)."""
        self._open("grow")
        before = self.size
        assert size % PAGE == 0 and size >= before, f"8: grow({size}) of {before} bytes"
        assert not self._growing, f"8: grow({size}) while another one is in flight"
        self._growing = True
        try:
            with self._only_store_errors("grow"):
                await self._inner.grow(size)
        except BaseException:
            assert self.size == before, f"8: the size is {self.size} after grow({size}) of {before} bytes failed"
            raise
        finally:
            self._growing = False
        assert self.size == size, f"8: the size is {self.size} after grow({size})"

    async def aclose(self) -> None:
        """Idempotent; from now on every other call is wrong (7)."""
        self._closed = True
        await self._inner.aclose()

    def _open(self, name: str) -> None:
        assert not self._closed, f"7: {name} after aclose"

    def _check(self, name: str, offset: int, length: int) -> None:
        self._open(name)
        assert length > 0, f"1: {name} of {length} bytes"
        assert offset % PAGE == 0 and length % PAGE == 0, f"1: {name}({offset}, {length}) is not aligned"
        assert offset >= 0 and offset + length <= self.size, f"1: {name}({offset}, {length}) is outside {self.size}"

    @contextmanager
    def _exclusive(self, name: str, offset: int, length: int) -> Iterator[None]:
        mine = (offset, offset + length)
        if not self._overlaps:
            for start, end in self._modifying:
                assert end <= offset or mine[1] <= start, (
                    f"2: {name}({offset}, {length}) overlaps a modifying call in flight on [{start}, {end})"
                )
        self._modifying.append(mine)
        try:
            yield
        finally:
            self._modifying.remove(mine)

    @contextmanager
    def _only_store_errors(self, name: str) -> Iterator[None]:
        """4: StoreError and trio.Cancelled are all that may come out. Assertions of a check further down pass."""
        try:
            yield
        except (StoreError, trio.Cancelled, AssertionError, GeneratorExit):
            raise
        except BaseException as error:
            if isinstance(error, BaseExceptionGroup) and error.split(trio.Cancelled)[1] is None:
                raise  # a cancellation that went through a nursery
            _wrong(f"4: {name} raised {error!r}", error)


def _wrong(message: str, error: BaseException) -> NoReturn:
    raise AssertionError(message) from error
