"""What each page of a disk may hold, by what was asked of it: the reference of the random tests.

Overlapping modifying calls take effect in the order of arrival. So, for one page: the *base* is the last call that
returned well; whatever came after it and has not (in flight, failed, cancelled) may have been applied or not. Nothing
that came before the base may ever be seen again. A page that the disk got by growing begins as zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest

import trio

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.contract import PAGE, Store
from blobfuse_dysk.testing import CheckedStore, SimBlob

__all__ = ["PAGES", "SIZE", "Model", "Program", "Run", "Step", "content"]

PAGES = 24
SIZE = PAGES * PAGE  # bytes, at the beginning
Step = tuple[str, int, int, float | None, float]
"""(name of the call, first page, pages, seconds after which it is cancelled or None, seconds of pause before it)"""
Program = list[list[Step]]


@dataclass(slots=True)
class _Op:
    arrived: int
    serial: int  # 0: zeros
    done: bool = False


def content(serial: int, page: int) -> bytes:
    """The page's content after the write with this number; 0 means zeros."""
    return struct.pack("<QQ", serial, page) * (PAGE // 16) if serial else bytes(PAGE)


class Model:
    """Told of each call as it starts and ends."""

    def __init__(self, pages: int) -> None:
        self._ops: list[list[_Op]] = []
        self._arrivals = 0
        self.grow(pages)

    @property
    def pages(self) -> int:
        """How many the disk has, as far as a caller was told."""
        return len(self._ops)

    @property
    def size(self) -> int:
        """Bytes, likewise."""
        return self.pages * PAGE

    def grow(self, pages: int) -> None:
        """The disk has so many now; no fewer than before."""
        assert pages >= self.pages
        self._ops += [[_Op(0, 0, done=True)] for _ in range(self.pages, pages)]

    def data(self, serial: int, first: int, count: int) -> bytes:
        """What to write."""
        return b"".join(content(serial, page) for page in range(first, first + count))

    @contextmanager
    def modifying(self, serial: int, first: int, count: int) -> Iterator[None]:
        """Around a write (or zero, serial 0); the call must be the first thing inside."""
        self._arrivals += 1
        ops = [_Op(self._arrivals, serial) for _ in range(count)]
        for page, op in zip(range(first, first + count), ops, strict=True):
            self._ops[page].append(op)
        yield
        for op in ops:
            op.done = True

    def bases(self, first: int, count: int) -> list[int]:
        """Call when a read starts, and give the answer to `check` when it has ended."""
        return [max(op.arrived for op in self._ops[page] if op.done) for page in range(first, first + count)]

    def check(self, bases: list[int], first: int, data: bytes) -> None:
        """Assert that each page is what it was at some moment of the read."""
        for index, base in enumerate(bases):
            page = first + index
            found = data[index * PAGE : (index + 1) * PAGE]
            allowed = {op.serial for op in self._ops[page] if op.arrived >= base}
            assert any(found == content(serial, page) for serial in allowed), (
                f"page {page} holds {struct.unpack('<QQ', found[:16])}, allowed are the writes {sorted(allowed)}"
            )


class Run:
    """One program against one store. kinds: the errors that its calls may end with.

    blob: what the store keeps its content in; after each flush that returned it is looked at.
    durable: what the last such flush guarantees, as `Model.bases`.
    """

    def __init__(self, store: Store, model: Model, kinds: set[Kind], blob: SimBlob | None = None) -> None:
        self.store = CheckedStore(store, overlaps=True)
        self.blob = blob
        self.model = model
        self.kinds = kinds
        self.serial = 0
        self.durable = model.bases(0, model.pages)
        self.alone = True  # False: another node writes too, so what is read says nothing
        self._growing = trio.Lock()
        self._most = 0  # pages that were ever asked for

    async def tasks(self, program: Program) -> None:
        """All tasks of the program at once."""
        async with trio.open_nursery() as nursery:
            for steps in program:
                nursery.start_soon(self.task, steps)

    async def task(self, program: list[Step]) -> None:
        """One task: each step after its pause, cancelled after its time."""
        for name, first, count, cancel_s, pause_s in program:
            await trio.sleep(pause_s)
            with trio.move_on_after(float("inf") if cancel_s is None else cancel_s):
                try:
                    first %= self.model.pages
                    await self.one(name, first, min(count, self.model.pages - first))
                except StoreError as error:
                    assert error.kind in self.kinds, f"{name}: {error}"

    async def one(self, name: str, first: int, count: int) -> None:
        """One call, told to the model; reads are checked. grow: by so many pages."""
        offset, length = first * PAGE, count * PAGE
        if name == "read":
            bases = self.model.bases(first, count)
            data = bytes(await self.store.read(offset, length))
            if self.alone:
                self.model.check(bases, first, data)
        elif name == "flush":
            bases = self.model.bases(0, self.model.pages)
            await self.store.flush()
            if self.alone and self.blob is not None:
                self.model.check(bases, 0, self.blob.store.peek(0, len(bases) * PAGE))
            self.durable = [max(pair) for pair in zip_longest(self.durable, bases, fillvalue=0)]
        elif name == "grow":
            async with self._growing:  # one at a time
                # One that was cancelled may have been done: the blob has its size then, and none below is taken.
                pages = self._most = max(self._most, self.model.pages + count)
                await self.store.grow(pages * PAGE)
                self.model.grow(pages)
        elif name == "write":
            self.serial += 1
            data = self.model.data(self.serial, first, count)
            with self.model.modifying(self.serial, first, count):
                await self.store.write(offset, data)
        else:
            with self.model.modifying(0, first, count):
                await (self.store.zero(offset, length) if name == "zero" else self.store.write(offset, bytes(length)))
