"""A clock that jumps to where something happens: hours of simulated time for seconds of processor time."""

from __future__ import annotations

import math

import trio

__all__ = ["JumpingClock"]

_FOREVER_S = 1e6  # trio waits for less, and asks again


class JumpingClock(trio.abc.Clock):
    """trio's MockClock with autojump, for runs that wait for nothing but time.

    It jumps as soon as no task can run, without a second look: so it takes half the rounds of trio's loop, but must not
    be used with `wait_all_tasks_blocked`, threads or real I/O, which it would overtake.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def start_clock(self) -> None:
        """Nothing: it stands at 0."""

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Asked by trio's loop when there is nothing else to do."""
        if deadline == math.inf:
            return _FOREVER_S  # all wait for each other; tests/conftest.py sets a deadline, so that this fails
        self._now = max(self._now, deadline)
        return 0.0
