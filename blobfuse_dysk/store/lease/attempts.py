"""Trying again while attaching, when somebody waits at a terminal; data has Retry for that."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

import trio

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.parts.backoff import Backoff

__all__ = ["Attempts"]

T = TypeVar("T")
_TRANSIENT = frozenset({Kind.THROTTLED, Kind.UNREACHABLE, Kind.CORRUPT, Kind.INTERNAL})


class Attempts:
    """Repeats a call while its StoreError may pass by itself, for budget_s seconds each (None: for ever).

    Refusals (credential, lease, not found) are raised at once: whoever attaches is there to read them.
    """

    def __init__(self, random: Random, budget_s: float | None) -> None:
        self._random = random
        self._budget_s = math.inf if budget_s is None else budget_s
        self.unknown = False
        """Whether any attempt of the latest call may have been carried out, or may still be."""

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        deadline = trio.current_time() + self._budget_s
        backoff = Backoff(self._random, most_s=4.0)
        self.unknown = False
        while True:
            try:
                return await call()
            except StoreError as error:
                self.unknown = self.unknown or error.unknown
                pause_s = backoff.next_s(error)
                if error.kind not in _TRANSIENT or trio.current_time() + pause_s >= deadline:
                    raise
            except BaseException:
                self.unknown = True
                raise
            await trio.sleep(pause_s)
