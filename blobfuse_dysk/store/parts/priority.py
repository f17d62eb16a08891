"""How urgent a request is. Said by whoever knows (a cache, a trim), heard by Throttle, carried by the task's context.

    with priority(Priority.READ_AHEAD):
        nursery.start_soon(store.read, offset, length)     # a new task inherits it

A task that makes one request after the other says so once, by an Urgency that it changes from request to request: a
detached task (detached.py) has not its own context, so what it sets there is not its own either. Whoever asks for the
priority is attached.

Without it, reads are READ and modifying calls are FLUSH: somebody waits for them.
"""

from __future__ import annotations

import enum
from contextvars import ContextVar, Token

__all__ = ["Priority", "Urgency", "current_priority", "priority"]


class Priority(enum.IntEnum):
    """Lower goes first."""

    FLUSH = 0
    READ = 1
    READ_AHEAD = 2
    DRAIN = 2  # the same level: nobody waits for either yet
    TRIM = 3


class Urgency:
    """A priority that changes. now: what it is at this moment."""

    __slots__ = ("now",)

    def __init__(self, now: Priority) -> None:
        self.now = now


_current: ContextVar[Urgency | None] = ContextVar("priority", default=None)


def current_priority(default: Priority) -> Priority:
    """Return what the calling task (or its parent when it was started) asked for."""
    chosen = _current.get()
    return default if chosen is None else chosen.now


class priority:
    """`with priority(level)` gives the requests made inside the block, and by tasks started in it, this priority."""

    __slots__ = ("_level", "_token")

    def __init__(self, level: Priority | Urgency) -> None:
        self._level = level if isinstance(level, Urgency) else Urgency(level)
        self._token: Token[Urgency | None]

    def __enter__(self) -> None:
        self._token = _current.set(self._level)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
