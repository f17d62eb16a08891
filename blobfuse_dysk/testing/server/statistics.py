"""What the server saw, so that tests can assert on it.

Two writes overlap when both have arrived, neither is done, their ranges meet, and both could still land. A write
with an epoch (x-ms-if-sequence-number-eq) below the blob's sequence number can land no more: a client that raised
the epoch may send the same range again while the old request is still held somewhere, and is right to do so.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from .request import Request

__all__ = ["Statistics", "Write"]

MAX_EXAMPLES = 20


class Write:
    """A data write in flight."""

    __slots__ = ("arrived", "clears", "end", "epoch", "key", "offset")

    def __init__(self, key: str, offset: int, end: int, epoch: int | None, clears: bool) -> None:
        self.key = key
        self.offset = offset
        self.end = end  # exclusive
        self.epoch = epoch
        self.clears = clears
        self.arrived = time.monotonic()

    def to_json(self) -> dict[str, object]:
        """For the examples."""
        return {"offset": self.offset, "length": self.end - self.offset, "epoch": self.epoch, "clears": self.clears}


class _BlobCounts:
    """Counts of one blob."""

    __slots__ = (
        "bytes_read",
        "bytes_written",
        "codes",
        "in_flight",
        "max_writes_in_flight",
        "overlapping_writes",
        "requests",
        "writes_without_epoch",
        "writes_without_lease",
    )

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.bytes_read = 0
        self.bytes_written = 0
        self.writes_without_lease = 0
        self.writes_without_epoch = 0
        self.overlapping_writes = 0
        self.max_writes_in_flight = 0
        self.in_flight: list[Write] = []

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__ if name != "in_flight"}
        found["writes_in_flight"] = len(self.in_flight)
        return found


class Statistics:
    """All counts since the start or the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again from zero; writes in flight are forgotten."""
        self.requests: Counter[str] = Counter()  # by kind of operation
        self.statuses: Counter[int] = Counter()
        self.codes: Counter[str] = Counter()  # by x-ms-error-code
        self.faults: Counter[str] = Counter()  # by action
        self.connections = 0
        self.forgotten = 0  # connections that died without a word
        self.bytes_in = 0  # request bodies
        self.bytes_out = 0  # answer bodies
        self.held_applied = 0  # requests that a `late` fault held and that were applied afterwards
        self.held_refused = 0  # the same, but refused when their time came
        self.overlap_examples: list[dict[str, object]] = []
        self.without_examples: list[dict[str, object]] = []  # data writes without lease or epoch
        self.blobs: dict[str, _BlobCounts] = {}

    def blob(self, key: str) -> _BlobCounts:
        """The counts of one blob."""
        found = self.blobs.get(key)
        if found is None:
            found = self.blobs[key] = _BlobCounts()
        return found

    def begin_write(self, write: Write, request: Request, sequence_number: int) -> None:
        """A data write arrived. sequence_number: the blob's, now."""
        counts = self.blob(write.key)
        may_land = _may_land(write, sequence_number)
        for other in counts.in_flight:
            meet = write.offset < other.end and other.offset < write.end
            if meet and may_land and _may_land(other, sequence_number):
                counts.overlapping_writes += 1
                if len(self.overlap_examples) < MAX_EXAMPLES:
                    self.overlap_examples.append(
                        {"blob": write.key, "first": other.to_json(), "second": write.to_json()}
                    )
        counts.in_flight.append(write)
        counts.max_writes_in_flight = max(counts.max_writes_in_flight, len(counts.in_flight))
        without_lease = b"x-ms-lease-id" not in request.headers
        without_epoch = write.epoch is None
        counts.writes_without_lease += without_lease
        counts.writes_without_epoch += without_epoch
        if (without_lease or without_epoch) and len(self.without_examples) < MAX_EXAMPLES:
            example = {"blob": write.key, "lease": not without_lease, **write.to_json()}
            self.without_examples.append(example)

    def end_write(self, write: Write) -> None:
        """The write was applied, refused, or will never be applied."""
        in_flight = self.blob(write.key).in_flight
        if write in in_flight:  # not after a reset
            in_flight.remove(write)

    def done(self, kind: str, key: str, access: str, status: int, code: str, body_in: int, body_out: int) -> None:
        """A request was applied or refused."""
        self.requests[kind] += 1
        self.statuses[status] += 1
        self.bytes_in += body_in
        self.bytes_out += body_out
        counts = self.blob(key)
        counts.requests[kind] += 1
        if code:
            self.codes[code] += 1
            counts.codes[code] += 1
        elif access == "read":
            counts.bytes_read += body_out
        elif access == "write":
            counts.bytes_written += body_in

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-able. Sums over all blobs stand beside the counts of each."""
        blobs = {key: counts.to_json() for key, counts in self.blobs.items()}
        sums = {
            name: sum(counts[name] for counts in blobs.values())
            for name in ("overlapping_writes", "writes_without_lease", "writes_without_epoch", "writes_in_flight")
        }
        return {
            "requests": self.requests,
            "total_requests": self.requests.total(),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "codes": self.codes,
            "condition_failures": self.statuses[412],
            "faults": self.faults,
            "connections": self.connections,
            "forgotten": self.forgotten,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "held_applied": self.held_applied,
            "held_refused": self.held_refused,
            "overlap_examples": self.overlap_examples,
            "without_examples": self.without_examples,
            "blobs": blobs,
            **sums,
        }


def _may_land(write: Write, sequence_number: int) -> bool:
    return write.epoch is None or write.epoch >= sequence_number
