"""A snapshot of the disk that a worker serves: what was written is at the service first, then that makes it.

Both have a bound of their own, since a file system may be frozen for as long as they take.
"""

from __future__ import annotations

from collections.abc import Mapping

import trio

from blobfuse_dysk.errors import Kind, LaterError, StoreError
from blobfuse_dysk.store.stack import Stack

__all__ = ["barrier", "take"]


async def barrier(stack: Stack, timeout_s: float) -> str:
    """Stack.barrier, within that time. Raises DyskError."""
    with trio.move_on_after(timeout_s):
        return await stack.barrier()
    raise LaterError(
        f"what was written is not at the service within {timeout_s:g} s", remedy="see dyskctl status; try again"
    )


async def take(stack: Stack, metadata: Mapping[str, str], etag: str | None, timeout_s: float) -> tuple[str, int]:
    """Stack.snapshot, within that time. Raises DyskError."""
    with trio.move_on_after(timeout_s):
        return await stack.snapshot(metadata, etag)
    raise StoreError(f"the service made no snapshot within {timeout_s:g} s", Kind.TIMEOUT, unknown=True)
