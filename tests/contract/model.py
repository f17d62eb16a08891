"""Random programs against a store: what they do, and the reference that says what each page may hold meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import trio
from hypothesis import strategies as st

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.contract import PAGE, Buffer, Store
from blobfuse_dysk.testing import CheckedStore
from blobfuse_dysk.testing.pages import PageModel, stamped, versions

__all__ = ["CALLS", "PAGES", "SIZE", "Model", "Program", "Run", "Step", "check", "model_of", "programs"]

PAGES = 24
SIZE = PAGES * PAGE  # bytes, where the store does not grow
Step = tuple[str, int, int, float | None, float]
"""(name of the call, first page, pages, seconds after which it is cancelled or None, seconds of pause before it)"""
Program = list[list[Step]]
Model = PageModel[int, int]
"""By number of the page, the version that is stamped into it; 0: zeros."""
CALLS = ("write", "write", "zero", "blank", "read", "flush")


def model_of(image: Buffer = b"") -> Model:
    """Of a store that begins with these pages. Overlapping calls take effect in the order of arrival (contract, 1)."""
    return Model(0, dict(enumerate(versions(bytes(image)))), ordered=True)


def check(model: Model, since: float, data: Buffer) -> None:
    """Assert that each page of the store's beginning holds what it may, if all is guaranteed that ended before."""
    model.check(enumerate(versions(bytes(data))), since)


def programs(
    seconds: st.SearchStrategy[float],
    *,
    calls: tuple[str, ...] = CALLS,
    pages: int = PAGES,
    most: int = 6,
    tasks: int = 4,
    steps: int = 10,
) -> st.SearchStrategy[Program]:
    """Programs that hypothesis can shrink. seconds: of pauses, and until a call is cancelled. most: pages of a call."""
    step = st.tuples(
        st.sampled_from(calls),
        st.integers(0, pages - 1),
        st.integers(1, most),
        st.one_of(st.none(), seconds),
        seconds,
    )
    return st.lists(st.lists(step, min_size=1, max_size=steps), min_size=1, max_size=tasks)


class Run:
    """One program against one store. kinds: the errors that its calls may end with.

    image: the content of what the store keeps its pages in; after each flush that returned it is looked at.
    apart: a modifying call that would overlap another is left out.
    durable: the moment of the model from when the last such flush guarantees what had ended.
    """

    def __init__(
        self,
        store: Store,
        model: Model,
        kinds: set[Kind],
        image: Callable[[], Buffer] | None = None,
        *,
        pages: int = PAGES,
        apart: bool = False,
    ) -> None:
        self.store = CheckedStore(store, overlaps=True)
        self.image = image
        self.model = model
        self.kinds = kinds
        self.serial = 0
        self.durable = model.now()
        self.alone = True  # False: another node writes too, so what is read says nothing
        self._pages = self._most = pages  # that there are, and that were ever asked for
        self._growing = trio.Lock()
        self._busy: set[int] | None = set() if apart else None

    @property
    def size(self) -> int:
        """Bytes of the store, as far as a caller was told."""
        return self._pages * PAGE

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
                    first %= self._pages
                    await self.one(name, first, min(count, self._pages - first))
                except StoreError as error:
                    assert error.kind in self.kinds, f"{name}: {error}"

    async def one(self, name: str, first: int, count: int) -> None:
        """One call, told to the model; reads are checked. grow: by so many pages."""
        since = self.model.now()
        if name == "read":
            data = bytes(await self.store.read(first * PAGE, count * PAGE))
            if self.alone:
                self.model.check(enumerate(versions(data, first), first), since)
        elif name == "flush":
            await self.store.flush()
            if self.alone and self.image is not None:
                check(self.model, since, self.image())
            self.durable = max(self.durable, since)
        elif name == "grow":
            async with self._growing:  # one at a time
                # One that was cancelled may have been done: the blob has its size then, and none below is taken.
                pages_then = self._most = max(self._most, self._pages + count)
                await self.store.grow(pages_then * PAGE)
                self._pages = pages_then
        elif self._busy is None:
            await self._modify(name, range(first, first + count))
        elif not self._busy.intersection(pages := range(first, first + count)):
            self._busy.update(pages)
            try:
                await self._modify(name, pages)
            finally:
                self._busy.difference_update(pages)

    async def _modify(self, name: str, pages: range) -> None:
        version = 0
        if name == "write":
            self.serial += 1
            version = self.serial
        offset, length = pages.start * PAGE, len(pages) * PAGE
        data = b"".join(stamped(version, page) for page in pages)
        with self.model.writing(dict.fromkeys(pages, version)):
            await (self.store.zero(offset, length) if name == "zero" else self.store.write(offset, data))
