"""A tier's limits on one blob: I/O operations and bytes per second.

Two buckets that refill with time, kept as the moment at which all that was let through so far is paid for. Up to
BURST_S of work is let through at once; a request that would wait longer than QUEUE_S gets 503 ServerBusy, or with
`throttle=delay` waits as long as it takes.
Source of the figures: https://learn.microsoft.com/azure/storage/blobs/storage-blob-pageblob-overview and
https://learn.microsoft.com/azure/storage/blobs/scalability-targets
"""

from __future__ import annotations

from .answers import Refusal

__all__ = ["TIERS", "Limiter", "parse_tier"]

# name: (I/O operations per second, bytes per second) of one page blob
TIERS = {
    "standard": (500, 60_000_000),
    "P4": (120, 25_000_000),
    "P6": (240, 50_000_000),
    "P10": (500, 100_000_000),
    "P15": (1100, 125_000_000),
    "P20": (2300, 150_000_000),
    "P30": (5000, 200_000_000),
    "P40": (7500, 250_000_000),
    "P50": (7500, 250_000_000),
    "P60": (7500, 250_000_000),
    "P70": (7500, 250_000_000),
    "P80": (7500, 250_000_000),
}
IO_SIZE = 262_144  # a larger request counts as several I/O operations
BURST_S = 0.05
QUEUE_S = 0.05


def parse_tier(text: str) -> tuple[float, float]:
    """(operations, bytes) per second of a tier's name, or of `IOPS/MBPS` such as `2300/150`; ValueError otherwise."""
    if text in TIERS:
        return TIERS[text]
    iops, slash, megabytes = text.partition("/")
    if not slash or float(iops) <= 0 or float(megabytes) <= 0:
        raise ValueError(f"tier {text!r} is none of {', '.join(TIERS)} nor IOPS/MBPS")
    return float(iops), float(megabytes) * 1e6


class Limiter:
    """The limits of one blob."""

    __slots__ = ("_byte_paid", "_io_paid")

    def __init__(self) -> None:
        self._io_paid = 0.0
        self._byte_paid = 0.0

    def admit(self, length: int, rates: tuple[float, float], now: float, refuse: bool) -> float:
        """Seconds to wait before the request may run; Refusal ServerBusy when `refuse` and the queue is full."""
        io_paid = max(self._io_paid, now - BURST_S)
        byte_paid = max(self._byte_paid, now - BURST_S)
        wait = max(io_paid, byte_paid) - now
        if refuse and wait > QUEUE_S:
            reason = "Operations per second" if io_paid >= byte_paid else "Ingress or egress"
            raise Refusal("ServerBusy", f"{reason} is over the limit of the blob.")
        self._io_paid = io_paid + -(-length // IO_SIZE) / rates[0]
        self._byte_paid = byte_paid + length / rates[1]
        return max(0.0, wait)
