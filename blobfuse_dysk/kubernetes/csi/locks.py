"""At most one call a volume at a time: a second one is refused with ABORTED, and its sender tries again.

Source: the specification, "Concurrency": a plugin may do so, and side-cars repeat such a call.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from grpc import StatusCode

from blobfuse_dysk.kubernetes.csi.status import CallError

__all__ = ["VolumeLocks"]


class VolumeLocks:
    """Which volumes have a call under way in this process. Safe to use from several threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: set[str] = set()

    @contextlib.contextmanager
    def held(self, *keys: str) -> Iterator[None]:
        """Hold all these keys, empty ones left out. Raises CallError(ABORTED) at once if one of them is held."""
        wanted = {key for key in keys if key}
        with self._guard:
            if busy := wanted & self._held:
                raise CallError(
                    StatusCode.ABORTED, f"another call for {min(busy)} is under way", remedy="it is tried again"
                )
            self._held |= wanted
        try:
            yield
        finally:
            with self._guard:
                self._held -= wanted
