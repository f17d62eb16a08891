"""FaultyStore: fails on demand, the way the service does, and always within the contract of store/contract.py.

A write that fails with an unknown outcome is either applied, or never applied, or applied late: at some call after
that, but (point 4 of the contract) not after a later modifying call on an overlapping range has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Literal

import trio

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.contract import Buffer, Extent, Store

__all__ = ["Chooser", "Fault", "FaultyStore", "at_random", "in_turn"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one call.

    when: `before` (not applied, and says so), `lost` (applied, but reported as unknown), `dropped` (not applied,
    reported as unknown), `late` (not applied yet, reported as unknown). kind None: no error, only the delay.
    delay_s: before anything else.
    """

    kind: Kind | None = Kind.UNREACHABLE
    when: Literal["before", "lost", "dropped", "late"] = "before"
    delay_s: float = 0.0
    retry_after_s: float | None = None
    immediate: bool = False

    def error(self, what: str, *, modifies: bool) -> StoreError:
        """The error to raise; kind is not None."""
        assert self.kind is not None
        return StoreError(
            f"{what}: injected {self.kind.value}",
            self.kind,
            unknown=modifies and self.when != "before",
            retry_after_s=self.retry_after_s,
            immediate=self.immediate,
        )


Chooser = Callable[[str, int, int], Fault | None]
"""(name of the method, offset, length) -> what to do to the call, None for nothing."""


def in_turn(faults: Iterable[Fault | None], names: Iterable[str] = ("read", "write", "zero")) -> Chooser:
    """The first call of these names meets the first fault, and so on; then none."""
    left = iter(faults)
    wanted = frozenset(names)
    return lambda name, offset, length: next(left, None) if name in wanted else None


def at_random(random: Random, rate: float, faults: Iterable[Fault]) -> Chooser:
    """Each call meets one of `faults` with this probability."""
    choice = tuple(faults)
    return lambda name, offset, length: random.choice(choice) if random.random() < rate else None


class FaultyStore(Store):
    """Passes calls to `inner`, but for those that `choose` has a Fault for. random: when late writes land."""

    def __init__(self, inner: Store, choose: Chooser, *, random: Random | None = None) -> None:
        self.injected = 0
        self._inner = inner
        self._choose = choose
        self._random = random or Random(0)
        self._landing = trio.Lock()
        self._late: list[tuple[int, bytes | None, int]] = []  # (offset, data or None for zeros, length)

    @property
    def size(self) -> int:
        """The inner one's."""
        return self._inner.size

    async def read(self, offset: int, length: int) -> Buffer:
        """Read, or fail."""
        fault = await self._meet("read", offset, length)
        await self._land(None)
        if fault is not None and fault.kind is not None:
            raise fault.error(f"reading {length} bytes at {offset}", modifies=False)
        return await self._inner.read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        """Write, or fail, or both."""
        await self._modify("write", offset, data, len(data))

    async def zero(self, offset: int, length: int) -> None:
        """Zero, or fail, or both."""
        await self._modify("zero", offset, None, length)

    async def flush(self) -> None:
        """Flush, or fail."""
        fault = await self._meet("flush", 0, 0)
        if fault is not None and fault.kind is not None:
            raise fault.error("flushing", modifies=False)
        await self._inner.flush()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Ask, or fail."""
        fault = await self._meet("extents", offset, length)
        await self._land(None)
        if fault is not None and fault.kind is not None:
            raise fault.error("page list", modifies=False)
        return await self._inner.extents(offset, length)

    async def grow(self, size: int) -> None:
        """Grow, or fail. One whose answer is lost is done all the same the next time, when it is nothing to do."""
        fault = await self._meet("grow", 0, size)
        if fault is not None and fault.kind is not None:
            raise fault.error(f"growing to {size} bytes", modifies=True)
        await self._inner.grow(size)

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()

    async def _modify(self, name: str, offset: int, data: Buffer | None, length: int) -> None:
        fault = await self._meet(name, offset, length)
        await self._land((offset, offset + length))
        error = None
        if fault is not None and fault.kind is not None:
            error = fault.error(f"{name} of {length} bytes at {offset}", modifies=True)
            if fault.when == "late":
                self._late.append((offset, None if data is None else bytes(data), length))
            if fault.when != "lost":
                raise error
        await self._apply(offset, data, length)
        if error is not None:
            raise error

    async def _meet(self, name: str, offset: int, length: int) -> Fault | None:
        fault = self._choose(name, offset, length)
        if fault is not None:
            self.injected += fault.kind is not None
            if fault.delay_s:
                await trio.sleep(fault.delay_s)
        return fault

    async def _land(self, before: tuple[int, int] | None) -> None:
        """Let late writes land, or not. `before`: a range about to be modified, whose late writes are decided now.

        The lock keeps a modifying call from starting while an older late write on its range is just landing.
        """
        async with self._landing:
            for late in list(self._late):
                offset, data, length = late
                overlaps = before is not None and offset < before[1] and before[0] < offset + length
                lands = self._random.random() < 0.5
                if lands or overlaps:
                    self._late.remove(late)
                if lands:
                    await self._apply(offset, data, length)

    async def _apply(self, offset: int, data: Buffer | None, length: int) -> None:
        if data is None:
            await self._inner.zero(offset, length)
        else:
            await self._inner.write(offset, data)
