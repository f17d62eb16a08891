"""How urgent a request is. Said by whoever knows (a cache, a trim), heard by Throttle, carried by the task's context.

    with priority(Priority.READ_AHEAD):
        nursery.start_soon(store.read, offset, length)     # a new task inherits it

Without it, reads are READ and modifying calls are FLUSH: somebody waits for them.
"""

from __future__ import annotations

import enum
from contextvars import ContextVar, Token

__all__ = ["Priority", "current_priority", "priority"]


class Priority(enum.IntEnum):
    """Lower goes first."""

    FLUSH = 0
    READ = 1
    READ_AHEAD = 2
    DRAIN = 2  # the same level: nobody waits for either yet
    TRIM = 3


_current: ContextVar[Priority | None] = ContextVar("priority", default=None)


def current_priority(default: Priority) -> Priority:
    """Return what the calling task (or its parent when it was started) asked for."""
    chosen = _current.get()
    return default if chosen is None else chosen


class priority:
    """`with priority(level)` gives the requests made inside the block, and by tasks started in it, this priority."""

    __slots__ = ("_level", "_token")

    def __init__(self, level: Priority) -> None:
        self._level = level
        self._token: Token[Priority | None]

    def __enter__(self) -> None:
        self._token = _current.set(self._level)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
