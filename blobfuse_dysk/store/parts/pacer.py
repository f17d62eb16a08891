"""How many requests and bytes a second: the limits that a user set, and those that the service is found to have.

Theory. A tier sells so many I/O operations and so many bytes a second. A number of requests in flight cannot hold
such a limit: 500 operations a second at 2 ms are one request in flight, and two are twice too many. So requests are
spaced in time. Each of the two dimensions is a bucket, kept as the moment at which all that was sent so far is paid
for; a request may start once that moment has come. Up to BURST_S of unused time is made up for.

A rate is known only if the user gave it, or once the service refused something. From then on it is learned (Rate):

    unlimited --refused--> searching --refused--> settled --refused--> settled
                           settled, and less than half of the old rate got through, or LOST --> searching

    searching  the first estimate may be far off: grows by a factor of e in SEARCH_S
    settled    begins a little below what got through (`top`), comes back to it along a cubic curve, stays around it
               for a while, then leaves it behind faster and faster (the curve is that of CUBIC, RFC 9438): gentle where
               the limit is known to be. LOST times that without a refusal: the limit was raised, search again.

What got through while the service refused is the service's limit, whatever we sent; it is measured from the last
cut or pause on if that was a moment ago (over a longer time if nothing gets through now). A cut is taken back to that,
and one round later the next one may follow, so a limit that fell sharply is found in two or three rounds. Rates grow
only by the time during which they held requests back: an application that wants little learns nothing.

A refusal does not say which limit it is about. The mean size of what got through does, but for those between
SMALL and LARGE: there the one that was nearly used up is meant, or both.

Refusals that do not depend on the rate (a busy service that turns away one request in fifty, whoever sends it) must
not pull it down. Rare ones are ignored; when FUTILE cuts in a row did not make the others rarer, they are taken for
such noise, and tolerated for a while.

Pausing costs more when the service asks for long pauses (Retry-After): then the curve is stretched, so that probing
for more costs a small share of the time.

No await in here; times are those of trio.current_time(), given by the caller.
"""

from __future__ import annotations

from collections import deque
from math import inf

from blobfuse_dysk.store.contract import MAX_WRITE

__all__ = ["IO_SIZE", "Pacer", "Rate", "operations"]

IO_SIZE = 256 << 10  # bytes; a larger request counts as several operations, as the tiers count
LUMP_S = 0.008  # time that one write may take up: a fraction of what is measured over, and of a service's own burst
BURST_S = 0.025  # time not used that may be made up for: the lateness of timers
STEP_S = 0.05  # resolution of what is remembered
WINDOW_S = 0.5  # how far back one looks
LONG_S = 1.0  # and where nothing gets through at the moment: some services count by the second
ROUND_S = 0.1  # from one cut to the next, at least
ENOUGH = 5  # refusals that make it as short as that; else it takes WINDOW_S
SEARCH_S = 0.3
CURVE_S = 3.0  # from a cut back to the old rate
PAUSES = 30  # the curve takes at least so many times the pause that the service asked for
MOST_CURVE_S = 300.0
MARGIN = 0.04  # how far below what got through a cut goes
LOST = 1.25  # times the top: what was known is no longer true, the limit must have been raised
RARE = 0.01  # share of refusals that is ignored below the top of the curve
NOISE = 0.25  # share of refusals that can be noise; more is always a limit
FUTILE = 3
STEP_DOWN = 0.75  # where a pause is all that a refusal brings, too short a time is left for measuring
FORGET_S = 30.0  # half-life of tolerance
SMALL = 32_000  # bytes an operation; below, it is operations that every tier runs out of first (P60: 33 KB)
LARGE = 200_000  # bytes an operation; above, it is bytes (P10: 200 KB)
LEAST = (16.0, 4e6)  # operations, bytes a second; learned rates never go below
FIRST = (250.0, 30e6)  # nor a first estimate below half of the smallest tier


def operations(length: int) -> int:
    """What a request of `length` bytes counts in a tier's I/O operations; a clear (0 bytes) counts one."""
    return 1 if length <= IO_SIZE else -(-length // IO_SIZE)


class Rate:
    """One dimension. Amounts are operations or bytes. ceiling: what the user allows, per second."""

    __slots__ = ("_age_s", "_ceiling", "_first", "_least", "_searching", "_top", "learned", "paid", "rate")

    def __init__(self, ceiling: float, least: float, first: float) -> None:
        self.rate = self._ceiling = ceiling
        self.learned = inf
        self.paid = -inf  # the moment at which all that was sent is paid for
        self._least, self._first = least, first
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
    def above_top(self) -> bool:
        """Whether more is being tried than ever got through."""
        return self._searching or self.learned > self._top

    def cut(self, achieved: float, *, rare: bool) -> None:
        """The service refused while `achieved` a second got through. rare: only now and then."""
        before, self._age_s = self.learned, 0.0
        if before == inf:
            self._top, self._searching = max(self._first, achieved), True
            self._set(self._top)
            return
        least = self._top if rare and not self._searching else self._least
        self._top = max(least, min(before, achieved))
        self._searching = self._top < before / 2
        self._set(max(self._least, self._top * (1 - MARGIN)))

    def restore(self, top: float) -> None:
        """The last cuts were mistakes."""
        self._top, self._age_s, self._searching = top, 0.0, False
        self._set(top)

    def grow(self, seconds: float, curve_s: float) -> None:
        """It held requests back for so long, and nothing was refused."""
        if self._searching:
            self._set(self.learned * (1 + seconds / SEARCH_S))
        elif self.learned < inf:
            self._age_s += seconds
            self._set(self._top * (1 + MARGIN * (self._age_s / curve_s - 1) ** 3))
            self._searching = self.learned > self._top * LOST

    def _set(self, learned: float) -> None:
        self.learned = learned
        self.rate = min(learned, self._ceiling)


class Pacer:
    """See the module's text. iops, bytes_per_s: what the user allows; None is no limit."""

    def __init__(self, iops: float | None = None, bytes_per_s: float | None = None) -> None:
        self.operations = Rate(inf, LEAST[0], FIRST[0])
        self.bytes = Rate(inf, LEAST[1], FIRST[1])
        self.paced = False  # `due` and `charge` need not be called
        self._closed_until = -inf
        self.allow(iops, bytes_per_s)
        self._curve_s = CURVE_S
        self._through = _Through()
        self._cut_at = -inf
        self._held_at = inf  # since when requests are held back; inf: they are not
        self._share = 0.0  # of refusals, at the last cut
        self._futile = 0
        self._before = (inf, inf)
        self._tolerated = 0.0
        self._tolerated_at = -inf

    def allow(self, iops: float | None, bytes_per_s: float | None) -> None:
        """Change the user's limits; None is no limit. What was charged at the old ones stays charged."""
        self.operations.allow(inf if iops is None else iops)
        self.bytes.allow(inf if bytes_per_s is None else bytes_per_s)
        rate = min(self.operations.rate, self.bytes.rate)
        self.paced = rate < inf or self._closed_until > -inf

    @property
    def largest_write(self) -> int:
        """Bytes of the largest write worth sending in one: where bytes are spaced, few large ones come in lumps."""
        if self.bytes.rate == inf:
            return MAX_WRITE
        return max(IO_SIZE, min(MAX_WRITE, int(self.bytes.rate * LUMP_S) // IO_SIZE * IO_SIZE))

    def due(self) -> float:
        """When the next request may start."""
        return max(self._closed_until, self.operations.paid, self.bytes.paid)

    def charge(self, length: int, now: float) -> None:
        """A request starts; `due` has come."""
        if self.operations.rate < inf:
            self.operations.charge(operations(length), now)
        if self.bytes.rate < inf:
            self.bytes.charge(length, now)

    def held(self, now: float, waits: bool) -> None:
        """Requests wait, and it is only `due` that they wait for (or not: `waits`). Call when that may have changed."""
        if self._held_at < now:
            binding = self.operations if self.operations.paid >= self.bytes.paid else self.bytes
            binding.grow(now - self._held_at, self._curve_s)
        self._held_at = max(now, self._closed_until) if waits else inf

    def succeeded(self, length: int, now: float) -> None:
        """A request of `length` bytes came back well."""
        self._through.add(length, now)

    def pause(self, until: float, seconds: float) -> None:
        """The service wants no request before `until`, `seconds` from now."""
        self._closed_until = max(self._closed_until, until)
        self._curve_s = min(MOST_CURVE_S, max(CURVE_S, seconds * PAUSES))
        self.paced = True

    def refused(self, started: float, now: float, in_flight: tuple[int, int]) -> bool:
        """A request was turned away; in_flight: (operations, bytes). Whether that is news, and no fine adjustment."""
        through = self._through
        through.refused += 1
        settled = self.operations.settled or self.bytes.settled
        begin = max(self._cut_at, self._closed_until, now - (WINDOW_S if settled else 2 * ROUND_S))
        span_s, done, size, refused = through.since(begin, now)
        after_pause = self._cut_at < self._closed_until <= now
        if started <= self._cut_at or (not after_pause and not self._evident(now, refused)):
            return False
        share = refused / (refused + done)
        if self._tolerable(share, now):
            return False
        if not done:
            done, size = through.since(now - LONG_S, now)[1:3]
            span_s = LONG_S
        if self.operations.learned == inf and self.bytes.learned == inf:
            done, size = done + in_flight[0], size + in_flight[1]
        if not done:
            return True  # out of order; that is not about rates
        if self._is_noise(share, now):
            self.operations.restore(self._before[0])
            self.bytes.restore(self._before[1])
        else:
            most = STEP_DOWN if after_pause and now < self._closed_until + WINDOW_S else 1.0
            for rate, achieved in self._blamed(done / span_s, size / span_s):
                rate.cut(min(achieved, rate.learned * most), rare=share < RARE)
        self._share, self._cut_at, self.paced = share, now, True
        through.mark(now)
        return share > NOISE or not settled

    def _evident(self, now: float, refused: int) -> bool:
        """Whether enough was seen since the last cut to judge it."""
        since_s = now - self._cut_at
        return since_s >= WINDOW_S or (since_s >= ROUND_S and refused >= ENOUGH)

    def _tolerable(self, share: float, now: float) -> bool:
        tolerated = self._tolerated * 0.5 ** ((now - self._tolerated_at) / FORGET_S)
        if share < tolerated:
            return True
        above = self.operations.above_top or self.bytes.above_top
        return share < RARE and not above and self._curve_s == CURVE_S

    def _is_noise(self, share: float, now: float) -> bool:
        """Whether the last cuts changed nothing, so that refusals are not about the rate. Call once for each cut."""
        if now > self._cut_at + 2 * WINDOW_S or not self._share / 3 <= share <= NOISE:
            self._futile = 0
            self._before = (self.operations.learned, self.bytes.learned)
            return False
        self._futile += 1
        if self._futile < FUTILE:
            return False
        self._futile = 0
        self._tolerated, self._tolerated_at = 2 * share, now
        return True

    def _blamed(self, done: float, size: float) -> list[tuple[Rate, float]]:
        """The dimensions that a refusal is about, with what got through in each, per second."""
        mean = size / done if done else 0.0
        both = [(self.operations, done), (self.bytes, size)]
        if mean < SMALL:
            return both[:1]
        if mean > LARGE:
            return both[1:]
        used_up = [(rate, achieved) for rate, achieved in both if achieved > rate.learned * 0.8]
        return used_up or both


class _Through:
    """What got through lately: cumulative counts, remembered every STEP_S for LONG_S."""

    __slots__ = ("_done", "_marks", "_next", "_size", "refused")

    def __init__(self) -> None:
        self._done = self._size = self.refused = 0
        self._marks: deque[tuple[float, int, int, int]] = deque()
        self._next = -inf

    def add(self, length: int, now: float) -> None:
        if now >= self._next:
            self.mark(now)
        self._done += 1 if length <= IO_SIZE else operations(length)
        self._size += length

    def since(self, start: float, now: float) -> tuple[float, int, int, int]:
        """(seconds, operations, bytes, refusals) since about `start`; at least ROUND_S is assumed to have passed."""
        mark = next((mark for mark in self._marks if mark[0] >= start), None)
        if mark is None:
            return ROUND_S, 0, 0, 1
        at, done, size, refused = mark
        return max(now - at, ROUND_S), self._done - done, self._size - size, max(1, self.refused - refused)

    def mark(self, now: float) -> None:
        """Remember the counts as they are."""
        marks = self._marks
        while marks and marks[0][0] < now - LONG_S:
            marks.popleft()
        marks.append((now, self._done, self._size, self.refused))
        self._next = now + STEP_S
