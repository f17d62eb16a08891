"""What an attachment took and the service never got, and how that is said at its end: by then nobody else can tell.

The kernel wrote its page cache out, and that was taken; or it was refused, and nobody was there to hear of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from blobfuse_dysk.errors import DyskError, Kind, LeasedError, LossError, NotFoundError
from blobfuse_dysk.store.contract import Extent
from blobfuse_dysk.store.parts.extents import joined
from blobfuse_dysk.store.parts.ring import Ring, is_empty

__all__ = ["farewell", "is_for_good", "left_in"]

_MOST_RANGES = 3
_FSCK = "attach it again and check its file system (fsck) before it is used"
_FSCK_THERE = "check its file system (fsck) where it is attached next"
_GONE = "see whether a snapshot, or soft delete in the portal, still has what was on the disk"


def left_in(ring_fd: int) -> list[Extent]:
    """What a dirty ring holds that no block layer has taken up."""
    if is_empty(ring_fd):
        return []
    ring = Ring(ring_fd)
    try:
        return joined((record.offset, record.length) for record in ring.replay())
    finally:
        ring.close()


def is_for_good(error: DyskError) -> bool:
    """Whether a disk that could not be opened again for it never can be: another node has it, or the blob is gone."""
    gone = isinstance(error, NotFoundError) and error.missing == "disk"
    return gone or isinstance(error, LeasedError) or getattr(error, "kind", None) is Kind.FENCED


def farewell(name: str, error: DyskError | None, lost: object, unwritten: Sequence[Extent]) -> LossError | None:
    """What to say at the end of the attachment `name`; None if it was clean.

    error: what kept the block layer from its end. lost: why the first write that was refused was, if one was, by this
    worker or one before. unwritten: sorted and disjoint.
    """
    taken = isinstance(error, LeasedError) or getattr(error, "kind", None) is Kind.FENCED
    reason = lost or error  # what came first
    if not reason or (taken and not unwritten and not lost):
        return None  # who has the disk now has all that was accepted here
    remedy = _FSCK_THERE if taken else _GONE if getattr(error, "kind", None) is Kind.GONE else _FSCK
    if unwritten:
        what = f"{sum(length for _, length in unwritten)} bytes ({_places(unwritten)}) were never written"
    elif lost:
        what = "a write was refused before its end, and may be missing"
    else:
        what = "nothing that it took is missing, but its last flush failed"
    return LossError(f"{name} is detached; {what}: {reason}", remedy=remedy)


def _places(extents: Sequence[Extent]) -> str:
    """`at 0-4095, 8192-12287 and 5 more ranges`"""
    shown = ", ".join(f"{offset}-{offset + length - 1}" for offset, length in extents[:_MOST_RANGES])
    more = len(extents) - _MOST_RANGES
    return f"at {shown}" + (f" and {more} more range{'s' if more > 1 else ''}" if more > 0 else "")
