"""When requests may go out at all, and the time during which they did: what rates are measured in.

Theory. A pause that the service asked for is no time in which it let nothing through, and neither is one in which all
the calls there are wait for their own repeats. So rates are those of *open* time: the time of the clock, less what was
lost in such pauses.

No await in here; times are those of trio.current_time(), given by the caller.
"""

from __future__ import annotations

from math import inf

__all__ = ["Gate"]


class Gate:
    """closed_until: no request may start before. resumed_at: the end of the last pause of either kind."""

    __slots__ = ("_lost_s", "closed_until", "idle_at", "resumed_at")

    def __init__(self) -> None:
        self.closed_until = self.resumed_at = -inf
        self.idle_at = inf  # since when all calls wait for their repeats; inf: they do not
        self._lost_s = 0.0  # in pauses, until closed_until

    def close(self, now: float, seconds: float) -> None:
        """The service wants no request for so long."""
        until = now + seconds
        self._lost_s += max(0.0, until - max(self.closed_until, now))
        self.closed_until = self.resumed_at = max(self.closed_until, until)

    def idle(self, now: float) -> None:
        """The last call that was in progress waits for its repeat, too."""
        self.idle_at = now

    def started(self, now: float) -> None:
        """A request starts, so the disk is not idle any more. Need not be called unless idle_at is a time."""
        self._lost_s += max(0.0, now - max(self.idle_at, self.closed_until))
        self.idle_at, self.resumed_at = inf, now

    def open(self, now: float) -> float:
        """The time of now, without the pauses."""
        return max(now, self.closed_until) - self._lost_s
