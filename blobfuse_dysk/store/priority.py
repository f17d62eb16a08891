"""How urgent a request is. Said by whoever knows (a cache, a trim), heard by Throttle, carried by the task's context.

    with priority(Priority.READ_AHEAD):
        nursery.start_soon(store.read, offset, length)     # a new task inherits it

Without it, reads are READ and modifying calls are FLUSH: somebody waits for them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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


@contextmanager
def priority(level: Priority) -> Iterator[None]:
    """Give the requests made inside the block, and by tasks started in it, this priority."""
    token = _current.set(level)
    try:
        yield
    finally:
        _current.reset(token)
