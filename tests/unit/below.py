"""What stands below a layer in tests of its plain lane, and who calls it."""

from __future__ import annotations

from blobfuse_dysk.store.contract import Store
from blobfuse_dysk.store.passage import UNDER_WAY, Lane, Passage, Rest, launch
from blobfuse_dysk.testing import MemoryStore

__all__ = ["DATA", "SIZE", "Below", "Caller", "gives", "raises"]

SIZE = 4 << 20
DATA = b"x" * 512


class Below(MemoryStore):
    """The layer below, of which the test says how calls begin in its lanes, and where they end."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.begins = UNDER_WAY
        self.gives: bytes | None = None  # where a read is DONE
        self.under_way: list[Passage] = []
        self.plain_read, self.plain_write = Lane(self._begin), Lane(self._begin)

    def _begin(self, passage: Passage) -> int:
        if self.begins == UNDER_WAY:
            self.under_way.append(passage)
        passage.result = self.gives
        return self.begins


class Caller:
    """An Owner of one call in a store's lane."""

    def __init__(
        self, store: Store, data: bytes | None = None, started: float = 1.0, offset: int = 0, length: int = 512
    ) -> None:
        lane = store.plain_read if data is None else store.plain_write
        assert lane
        self.has_ended = False
        self.rest: Rest | None = None
        self.passage = Passage(lane, self, None, offset, length, data, started)
        self.began = launch(self.passage)

    def ended(self, passage: Passage) -> None:
        self.has_ended = True

    def take_over(self, passage: Passage, rest: Rest) -> None:
        self.rest = rest

    async def left(self) -> object:
        assert self.rest
        return await self.rest


async def gives(result: object = None) -> object:
    return result


async def raises(error: Exception) -> object:
    raise error
