"""What got through lately, of how many requests: counts, remembered for a while.

Times are open ones (gate.py): a pause that the service asked for is no time in which it let nothing through.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import NamedTuple

from blobfuse_dysk.store.parts.rate import IO_SIZE, operations

__all__ = ["Through"]


STEP_S = 0.05  # resolution of what is remembered
KEPT_S = 2.0  # and for how long
ROUND_S = 0.1  # no rate is that of less time

_Mark = tuple[float, int, int, int, int]  # time, operations, bytes, requests, refusals


class Span(NamedTuple):
    """What there was in so many seconds: operations, bytes and requests that came back well, and refusals."""

    seconds: float
    done: int
    size: int
    requests: int
    refused: int

    def exceeds(self, share: float) -> bool:
        """Whether more than that share of the requests was refused."""
        return self.refused > share * (self.refused + self.requests)

    def rates(self, more: tuple[int, int]) -> tuple[float, float]:
        """Operations and bytes per second, with so many more of both."""
        return (self.done + more[0]) / self.seconds, (self.size + more[1]) / self.seconds


class Through:
    """Cumulative counts, and what they were every STEP_S for KEPT_S. requests: that came back well, of any size."""

    __slots__ = ("_done", "_marks", "_next", "_size", "refused", "requests")

    def __init__(self) -> None:
        self._done = self._size = self.refused = self.requests = 0
        self._marks: deque[_Mark] = deque()
        self._next = -inf

    @property
    def totals(self) -> tuple[int, int]:
        """Operations and bytes since ever."""
        return self._done, self._size

    def add(self, length: int, now: float) -> None:
        """A request of `length` bytes came back well."""
        if now >= self._next:
            self.mark(now)
        self.requests += 1
        self._done += 1 if length <= IO_SIZE else operations(length)
        self._size += length

    def since(self, start: float, now: float) -> Span:
        """What there was since about `start`; at least ROUND_S is assumed to have passed, and one refusal seen."""
        mark = next((mark for mark in self._marks if mark[0] >= start), None)
        if mark is None:
            return Span(ROUND_S, 0, 0, 0, 1)
        at, done, size, requests, refused = mark
        return Span(
            max(now - at, ROUND_S),
            self._done - done,
            self._size - size,
            self.requests - requests,
            max(1, self.refused - refused),
        )

    def best(self, span_s: float, now: float) -> tuple[float, float]:
        """Operations and bytes per second of the best span of about that length that is remembered; 0 of none."""
        ends = [*self._marks, (now, self._done, self._size, self.requests, self.refused)]
        done = size = 0.0
        first = 0
        for at, operations_then, size_then, *_ in ends:
            while first + 1 < len(ends) and ends[first + 1][0] <= at - span_s:
                first += 1
            start = ends[first]
            if at - start[0] >= span_s:
                done = max(done, (operations_then - start[1]) / (at - start[0]))
                size = max(size, (size_then - start[2]) / (at - start[0]))
        return done, size

    def mark(self, now: float) -> None:
        """Remember the counts as they are."""
        marks = self._marks
        while marks and marks[0][0] < now - KEPT_S:
            marks.popleft()
        marks.append((now, self._done, self._size, self.requests, self.refused))
        self._next = now + STEP_S
