"""What must hold whatever happens, checked in production where a check costs next to nothing.

A broken invariant means that what this process knows of the disk is wrong. Nothing that it does from then on can be
trusted: a flush may return too early, an older write may overtake a newer one. So it does nothing any more: a worker
ends on the spot (`end_by`), before any other task of it runs, and the next one begins with what does not depend on this
one's memory, the dirty ring and the service; the kernel sends it what was not answered. If that one comes to the same
end, pauses become longer until io-timeout is over, and I/O fails. Data that was flushed is safe, or known to be lost.

`broken` is called where `assert` would stand. That one is left out by python -O, and an AssertionError is an Exception:
where errors become errnos it would be one more of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

__all__ = ["InvariantError", "broken", "end_by"]


class InvariantError(BaseException):
    """No error of a disk but of this program: nothing handles it."""


_end: Callable[[str], object] | None = None


def end_by(end: Callable[[str], object]) -> None:
    """Have the first broken invariant call `end`, which does not return, with a sentence about it."""
    global _end
    _end = end


def broken(what: str) -> NoReturn:
    """End this process; raise InvariantError where nobody said how (in tests)."""
    if _end is not None:
        _end(what)
    raise InvariantError(what)
