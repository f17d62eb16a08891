"""A fair lock on byte ranges: overlapping holders follow each other in the order of arrival. The mechanism of Order.

Theory. `enter` registers a ticket in the same step in which the call arrives, so the order is that of arrival. A
ticket waits for every ticket that was registered before it, overlaps it and has not left (running or waiting itself).
Tickets only ever wait for older ones, so there is no cycle and no deadlock, and nobody is overtaken where it
matters. A ticket that leaves (done, failed, or cancelled while waiting) releases those behind it, which may still wait
for others: a waiting ticket protects its own place.

Finding overlaps is cheap for the common case, many small ranges far apart: tickets are kept in buckets of 1 MiB of
address space, and most buckets are empty. A range over more than WIDE buckets goes into one list that everybody looks
through, and looks through everybody itself. `enter_free` is for who knows, in the same step, that nobody overlaps.

No await in this file but `Ticket.wait`.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from blobfuse_dysk.detached import attach

__all__ = ["RangeLock", "Ticket"]

BUCKET_SHIFT = 20  # 1 MiB
WIDE = 16  # buckets


class Ticket:
    """A place in the order of one range. `blockers`: older overlapping tickets that have not left."""

    __slots__ = ("blockers", "end", "event", "followers", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.blockers = 0
        self.followers: list[Ticket] | None = None  # most have none
        self.event: trio.Event | None = None

    async def wait(self) -> None:
        """Return when no older overlapping ticket is left."""
        await attach()
        if self.blockers:
            self.event = trio.Event()
            await self.event.wait()


class RangeLock:
    """Ranges are [offset, offset + length) in bytes."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[Ticket]] = {}
        self._wide: list[Ticket] = []

    def enter(self, offset: int, length: int) -> Ticket:
        """Take a place. Every `enter` needs exactly one `leave`, also when waiting was cancelled."""
        ticket = Ticket(offset, offset + length)
        first, last = offset >> BUCKET_SHIFT, (ticket.end - 1) >> BUCKET_SHIFT
        if last - first >= WIDE:
            older = {id(t): t for bucket in self._buckets.values() for t in bucket}
            self._block(ticket, older.values())
            self._block(ticket, self._wide)
            self._wide.append(ticket)
            return ticket
        if self._wide:
            self._block(ticket, self._wide)
        seen: dict[int, Ticket] = {}
        for index in range(first, last + 1):
            bucket = self._buckets.get(index)
            if bucket is None:
                self._buckets[index] = [ticket]
            else:
                seen.update((id(t), t) for t in bucket)
                bucket.append(ticket)
        if seen:
            self._block(ticket, seen.values())
        return ticket

    def is_free(self, offset: int, length: int) -> bool:
        """Whether `enter` would find nobody older; False, too, where that takes longer to find out."""
        first, last = offset >> BUCKET_SHIFT, (offset + length - 1) >> BUCKET_SHIFT
        if self._wide or last != first:
            return False
        bucket = self._buckets.get(first)
        if bucket is not None:
            end = offset + length
            for ticket in bucket:
                if ticket.start < end and offset < ticket.end:
                    return False
        return True

    def enter_free(self, offset: int, length: int) -> Ticket:
        """`enter` for a range that `is_free`."""
        ticket = Ticket(offset, offset + length)
        bucket = self._buckets.get(offset >> BUCKET_SHIFT)
        if bucket is None:
            self._buckets[offset >> BUCKET_SHIFT] = [ticket]
        else:
            bucket.append(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give the place up, and let those go who waited for nobody else."""
        first, last = ticket.start >> BUCKET_SHIFT, (ticket.end - 1) >> BUCKET_SHIFT
        if last - first >= WIDE:
            self._wide.remove(ticket)
        else:
            for index in range(first, last + 1):
                bucket = self._buckets[index]
                if len(bucket) == 1:
                    del self._buckets[index]
                else:
                    bucket.remove(ticket)
        for follower in ticket.followers or ():
            follower.blockers -= 1
            if not follower.blockers and follower.event is not None:
                follower.event.set()

    @staticmethod
    def _block(ticket: Ticket, older: Iterable[Ticket]) -> None:
        for other in older:
            if other.start < ticket.end and ticket.start < other.end:
                if other.followers is None:
                    other.followers = [ticket]
                else:
                    other.followers.append(ticket)
                ticket.blockers += 1
