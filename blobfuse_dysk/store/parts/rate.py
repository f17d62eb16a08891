"""One of the two rates of a disk: operations, or bytes, a second. How it is cut and how it grows; pacer.py says why.

    unlimited --refused--> searching --refused--> settled --refused--> settled
                           settled, and less than half of the old rate got through, or LOST --> searching

    searching  the first estimate may be far off: grows by a factor of e in SEARCH_S
    settled    begins a little below what got through (`top`), comes back to it along a cubic curve, stays around it
               for a while, then leaves it behind faster and faster (the curve is that of CUBIC, RFC 9438): gentle where
               the limit is known to be. LOST times that without a refusal: the limit was raised, search again.

    borne      what got through in calm time. Less is sent after cuts for single refusals, which may have been mistakes.

No await in here; times are those of trio.current_time(), given by the caller.
"""

from __future__ import annotations

from math import inf

__all__ = ["IO_SIZE", "Rate", "State", "operations"]

IO_SIZE = 256 << 10  # bytes; a larger request counts as several operations, as the tiers count
BURST_S = 0.025  # time not used that may be made up for: the lateness of timers
SEARCH_S = 0.3
BINDING = 0.8  # a rate of which less was used held nothing back
MARGIN = 0.04  # how far below what got through a cut goes
SURE = 0.97  # of what got through in calm time: bursts are in it
NEW = 1.05  # times what was borne: it is not known whether that is borne
LOST = 1.25  # times the top: what was known is no longer true, the limit must have been raised

State = tuple[float, float, bool]


def operations(length: int) -> int:
    """What a request of `length` bytes counts in a tier's I/O operations; a clear (0 bytes) counts one."""
    return 1 if length <= IO_SIZE else -(-length // IO_SIZE)


class Rate:
    """One dimension. Amounts are operations or bytes. ceiling: what the user allows, per second."""

    __slots__ = ("_age_s", "_ceiling", "_first", "_least", "_searching", "_top", "borne", "learned", "paid", "rate")

    def __init__(self, ceiling: float, least: float, first: float) -> None:
        self.rate = self._ceiling = ceiling
        self.learned = inf
        self.paid = -inf  # the moment at which all that was sent is paid for
        self._least, self._first = least, first
        self.borne = 0.0  # what is known to be borne, though less may be sent at the moment
        self._top = inf
        self._age_s = 0.0
        self._searching = False

    def allow(self, ceiling: float) -> None:
        """The user's limit is another one from now on."""
        self._ceiling = ceiling
        self.rate = min(self.learned, ceiling)

    def charge(self, amount: float, now: float) -> None:
        """A request starts."""
        self.paid = max(self.paid, now - BURST_S) + amount / self.rate

    @property
    def settled(self) -> bool:
        """Whether the service's limit is known, as well as it can be."""
        return self.learned < inf and not self._searching

    @property
    def searching(self) -> bool:
        """Whether the limit is being looked for, in large steps."""
        return self._searching

    @property
    def above_top(self) -> bool:
        """Whether more is being tried than ever got through."""
        return self._searching or self.learned > self._top

    def cut(self, achieved: float) -> None:
        """The service refused while `achieved` a second got through."""
        before, self._age_s = self.learned, 0.0
        if before == inf:
            self._top, self._searching = max(self._first, achieved), True
            self._set(self._top)
            return
        self._top = max(self._least, min(before, achieved))
        self._searching = self._top < before / 2
        self._set(max(self._least, self._top * (1 - MARGIN)))

    def ease(self, achieved: float, share: float, margin: float) -> None:
        """The service refused `share` of what was sent, which may have nothing to do with the rate: a little less."""
        base, self._searching = self.learned, self.learned == inf
        if base == inf:
            base = max(self._first, achieved)
        elif achieved < base * BINDING:  # it does not bind: to be an experiment, the cut must be one of what was sent
            base = max(achieved, self._least)
        self._top, self._age_s = base * (1 - share), 0.0
        self._set(max(self._least, self._top * (1 - margin)))

    def step_down(self, sustained: float) -> None:
        """Try what the service is known to bear, or stay; it is no estimate of the limit."""
        if sustained < self.learned:
            self._top, self._age_s, self._searching = max(self._least, sustained), 0.0, True
            self._set(self._top)

    @property
    def behind(self) -> bool:
        """Whether less is sent than is known to be borne."""
        return self.learned < self.borne

    def remember(self, achieved: float) -> None:
        """Nothing was refused for a while in which `achieved` a second got through."""
        self.borne = max(self.borne, SURE * min(achieved, self.learned))

    def settle(self) -> None:
        """What is known to be borne, if the present rate is less, or clearly more."""
        if self.behind or 0 < self.borne * NEW < self.learned < inf:
            self._top = self.borne
            self._set(self.borne)

    def catch_up(self, seconds: float, curve_s: float) -> None:
        """It held requests back for so long, and nothing is refused any more: back to what is borne, in large steps."""
        self._top, self._age_s, self._searching = self.borne, curve_s, False
        self._set(min(self.borne, self.learned * (1 + seconds / SEARCH_S)))

    @property
    def state(self) -> State:
        """What is known, for `restore`."""
        return self.learned, self._top, self._searching

    def restore(self, state: State) -> None:
        """The last cuts were mistakes."""
        learned, self._top, self._searching = state
        self._age_s = 0.0
        self._set(learned)

    def raise_to(self, state: State) -> None:
        """What was known in `state` is as good as what is known now."""
        if self.learned < state[0]:
            self.restore(state)

    def grow(self, seconds: float, curve_s: float, *, beyond: bool) -> None:
        """It held requests back for so long, and nothing was refused. beyond: what is known to be the limit, too."""
        if self._searching:
            self._set(self.learned * (1 + seconds / SEARCH_S))
        elif self.learned < inf:
            self._age_s += seconds
            share = MARGIN * (self._age_s / curve_s - 1) ** 3
            if share > 0 and not beyond:
                self._age_s, share = curve_s, 0.0
            self._set(self._top * (1 + share))
            self._searching = self.learned > self._top * LOST

    def _set(self, learned: float) -> None:
        self.learned = learned
        self.rate = min(learned, self._ceiling)
