"""Lists of extents, as several layers make them."""

from __future__ import annotations

from collections.abc import Iterable

from blobfuse_dysk.store.contract import Extent

__all__ = ["joined"]


def joined(extents: Iterable[Extent], gap: int = 0) -> list[Extent]:
    """Sort extents and join those that overlap, touch, or lie at most `gap` bytes apart."""
    runs: list[Extent] = []
    for offset, length in sorted(extents):
        if runs and offset - (runs[-1][0] + runs[-1][1]) <= gap:
            start, size = runs[-1]
            runs[-1] = (start, max(size, offset + length - start))
        else:
            runs.append((offset, length))
    return runs
