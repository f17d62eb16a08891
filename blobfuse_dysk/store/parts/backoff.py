"""How long to wait before the next attempt: exponential, with full jitter, never shorter than the service asks for.

Full jitter (uniform between zero and the exponential bound) spreads many clients best; see "Exponential Backoff And
Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from random import Random

from blobfuse_dysk.errors import StoreError

__all__ = ["Backoff"]

FIRST_S = 0.1
MOST_S = 8.0
MOST_RETRY_AFTER_S = 60.0  # a service that asks for more than this is asked again anyway
IMMEDIATE_IN_A_ROW = 8  # an error that claims to need no pause, and repeats, gets one


class Backoff:
    """One series of attempts. Seconds. Deterministic for a seeded `random`."""

    __slots__ = ("_bound_s", "_immediate", "_most_s", "_random")

    def __init__(self, random: Random, *, first_s: float = FIRST_S, most_s: float = MOST_S) -> None:
        self._random = random
        self._bound_s = first_s
        self._most_s = most_s
        self._immediate = 0

    def next_s(self, error: StoreError | None = None) -> float:
        """Return the pause before the next attempt after `error`."""
        if error is not None and error.immediate and self._immediate < IMMEDIATE_IN_A_ROW:
            self._immediate += 1
            return 0.0
        pause_s = self._random.uniform(0.0, self._bound_s)
        self._bound_s = min(self._bound_s * 2, self._most_s)
        if error is not None and error.retry_after_s is not None:
            pause_s = max(pause_s, min(error.retry_after_s, MOST_RETRY_AFTER_S))
        return pause_s
