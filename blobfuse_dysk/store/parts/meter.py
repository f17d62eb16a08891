"""Counts and times calls, for `dyskctl status`. Cheap: a few additions a call, fixed memory.

Latencies go into a histogram with logarithmic buckets (each 9 % wider than the one before, so a percentile is at most
that far off), over a rolling window: the current half minute and the one before it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from math import log2

import trio

from blobfuse_dysk.clock import bound_clock
from blobfuse_dysk.errors import StoreError

__all__ = ["Histogram", "Meter"]

WINDOW_S = 30.0
PER_OCTAVE = 8
BUCKETS = 30 * PER_OCTAVE  # 1 microsecond to 18 minutes


class Histogram:
    """Latencies of the last 30 to 60 seconds."""

    __slots__ = ("_before", "_now", "_turn_at")

    def __init__(self) -> None:
        self._now = [0] * BUCKETS
        self._before = [0] * BUCKETS
        self._turn_at = trio.current_time() + WINDOW_S

    def add(self, seconds: float, now: float) -> None:
        """Count one latency. now: trio.current_time()."""
        if now >= self._turn_at:
            self._turn(now)
        micros = seconds * 1e6
        bucket = int(log2(micros) * PER_OCTAVE) if micros > 1 else 0
        self._now[bucket if bucket < BUCKETS else BUCKETS - 1] += 1

    def percentiles(self, *wanted: int) -> dict[str, float | None]:
        """Return {'p50': milliseconds, ...}; None where the window has no sample."""
        self._turn(trio.current_time())
        both = [a + b for a, b in zip(self._now, self._before, strict=True)]
        total = sum(both)
        answer: dict[str, float | None] = {}
        for percent in wanted:
            need, seen, answer[f"p{percent}"] = total * percent / 100, 0, None
            for bucket, count in enumerate(both):
                seen += count
                if count and seen >= need:
                    answer[f"p{percent}"] = round(2 ** ((bucket + 1) / PER_OCTAVE) / 1000, 3)
                    break
        return answer

    def _turn(self, now: float) -> None:
        if now < self._turn_at:
            return
        stale = now >= self._turn_at + WINDOW_S
        self._before = [0] * BUCKETS if stale else self._now
        self._now = [0] * BUCKETS
        self._turn_at = now + WINDOW_S


class _Series:
    """The calls of one name."""

    __slots__ = ("bytes", "calls", "latency")

    def __init__(self) -> None:
        self.calls = 0
        self.bytes = 0
        self.latency: Histogram | None = None  # of those that succeeded


class Meter:
    """Calls by name: how many, how many bytes, how long, how many in flight, which errors."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.errors: Counter[str] = Counter()
        self._series: defaultdict[str, _Series] = defaultdict(_Series)
        self._now = bound_clock()

    @property
    def calls(self) -> dict[str, int]:
        """By name: how many calls ended, in whatever way."""
        return {name: series.calls for name, series in self._series.items()}

    @property
    def bytes(self) -> dict[str, int]:
        """By name: how many bytes the calls that succeeded moved."""
        return {name: series.bytes for name, series in self._series.items() if series.latency is not None}

    def start(self) -> float:
        """Call before; pass the answer to `success` or `failure`, exactly one of them."""
        self.in_flight += 1
        return self._now()

    def success(self, name: str, length: int, started: float) -> None:
        """A call of this name moved `length` bytes."""
        self.success_at(name, length, started, self._now())

    def success_at(self, name: str, length: int, started: float, now: float) -> None:
        """The same. now: trio.current_time(), by whoever knows it already."""
        self.in_flight -= 1
        series = self._series[name]
        series.calls += 1
        series.bytes += length
        latency = series.latency
        if latency is None:
            latency = series.latency = Histogram()
        latency.add(now - started, now)

    def failure(self, name: str, error: BaseException) -> None:
        """A call failed (counted by the error's kind) or was cancelled."""
        self.in_flight -= 1
        self._series[name].calls += 1
        self.errors[error.kind.value if isinstance(error, StoreError) else "cancelled"] += 1

    def status(self) -> dict[str, object]:
        """JSON-able."""
        latencies = {name: series.latency for name, series in self._series.items() if series.latency is not None}
        return {
            "calls": self.calls,
            "bytes": self.bytes,
            "errors": dict(self.errors),
            "in_flight": self.in_flight,
            "latency_ms": {name: latency.percentiles(50, 90, 99) for name, latency in latencies.items()},
        }
