"""WriteBack: a volatile write cache with real barriers, as a disk has.

States of a byte of the disk
    clean      the service holds the newest content
    dirty      a newer content waits in the ring                          (`_dirty`)
    in flight  a newer content is on its way to the service               (`_flight`)
  A byte can be in flight and dirty at once: it was written again meanwhile; the dirty content is the newer one.

    write, zero     clean | dirty -> dirty               no await between append to the ring and entry in `_dirty`
    send            dirty -> in flight                   only where nothing in flight overlaps
    acknowledged    in flight -> clean                   the ring's tail moves
    failed          stays in flight, latched             Retry has given up: no later write or flush succeeds

Invariants
1. A write returns when it is in the ring and in `_dirty`; between these two is no await, and a cancellation before
   them leaves nothing behind. What was accepted survives the worker (ring.py), and a flush the machine.
2. Two requests in flight never overlap (runs.py).
3. Data in flight is never overwritten: the ring only appends, and its tail passes no record with a live extent.
4. Newest wins: a new extent cuts older dirty ones; a byte in flight is sent again only after the answer.
5. A flush is a barrier: it starts a new generation, and returns when no extent of an older generation is left, in
   flight or dirty. An extent that covers an older one takes over its generation, so that the barrier also waits for
   the content that replaced what it has to make durable. Concurrent flushes wait for the same sending, and none of
   them for what was accepted after it began.
6. Urgency, for Throttle below: what a flush or a writer without room waits for goes first (FLUSH); what is sent because
   room is getting short goes along with reads (READ); what is sent because it is old yields to reads (DRAIN). Of the
   last kind at most IDLE_IN_FLIGHT are on their way, so that a flush never waits for many that go last.
   A log's write goes at once and returns when it is durable (commitlog.py).
7. After a permanent failure every later write and flush fails (as the kernel expects of a disk that lost data), until
   the disk is detached, and so do those that wait. Reads go on to see what was accepted.
8. Memory beyond the ring is bounded: a run of several pieces is joined into a copy when it is sent, and no run is
   begun while MAX_FLIGHT bytes are in flight.
   A write of MOST_JOINED (runs.py) or more goes out of the ring as it lies there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import trio

from blobfuse_dysk.clock import bound_clock
from blobfuse_dysk.detached import attach, run_next, running
from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.contract import MAX_WRITE, Buffer, Extent, Store
from blobfuse_dysk.store.parts.commitlog import CommitLog
from blobfuse_dysk.store.parts.dirtymap import DirtyExtent, DirtyMap, Ledger, cover
from blobfuse_dysk.store.parts.extents import joined
from blobfuse_dysk.store.parts.priority import Priority, priority
from blobfuse_dysk.store.parts.ring import DATA, Record, Ring
from blobfuse_dysk.store.parts.runs import RunQueue
from blobfuse_dysk.store.parts.senders import Run, Senders
from blobfuse_dysk.store.parts.spacequeue import Append, RoomLine
from blobfuse_dysk.store.passage import DONE, NO, Lane, Passage, Rest, begin_of, launch

__all__ = ["WriteBack"]

_AFTER_LOSS = "detach the disk, then attach it and check its file system"
MAX_IN_FLIGHT = 128  # runs, of the 256 requests that Throttle lets go at most: reads find slots, too
MAX_FLIGHT = 16 << 20  # bytes; at 30 ms for a request that is still 500 MB/s
IDLE_IN_FLIGHT = 8
MOST_PLAIN = 64 << 10  # bytes of a run that is sent in the plain lane: a larger one costs what it costs
_SHARE = 4  # sending begins by itself once a quarter of the ring is used


class WriteBack(Store):
    """See the module's text. The ring is the caller's; what an earlier worker left in it is taken up at once.

    nursery: where sending runs; it must outlive the store's use. idle_s: seconds after which accepted data is on its
    way although nobody asked for a flush. largest: bytes of the largest write that suits the service now. slots: how
    many requests it takes at once now; more would only queue below. on_failure: called when `failure` is set.
    """

    def __init__(
        self,
        inner: Store,
        ring: Ring,
        nursery: trio.Nursery,
        *,
        idle_s: float = 1.0,
        largest: Callable[[], int] = lambda: MAX_WRITE,
        slots: Callable[[], int] = lambda: MAX_IN_FLIGHT,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._inner, self._ring = inner, ring
        self._idle_s = idle_s
        self._slots = slots
        self._ledger = Ledger(ring)
        self._dirty = DirtyMap()
        self._flight = DirtyMap()
        self._queue = RunQueue(self._dirty, self._flight, largest)
        self._runs = 0
        self._generation = 0
        self._flushing = -1  # the youngest generation that a flush waits for
        self._log = CommitLog()
        self._urgency = Priority.READ  # of what is to be sent now
        self._due = math.inf  # when the oldest record that nobody asked for is to be sent
        self._on_failure = on_failure
        self._failure: StoreError | None = None
        self._room = RoomLine(self._accept)
        self._senders = Senders(nursery, self._send_on, lambda: self._urgency)
        self._read_below, self._write_below = inner.plain_read, inner.plain_write
        self.plain_read = self._read_below and self._read_below.under(self._begin_read)
        self.plain_write = Lane(self._begin_write)
        self._begin_read_below = begin_of(self._read_below)
        self._now = bound_clock()
        self._progress = trio.lowlevel.ParkingLot()  # those who wait for acknowledgements
        self._wake = trio.Event()
        for record in ring.replay():
            self._accept(record)
        self._queue.until = ring.head
        self._scope = trio.CancelScope()
        nursery.start_soon(self._sender)

    @property
    def size(self) -> int:
        return self._inner.size

    def status(self) -> dict[str, object]:
        """JSON-able: bytes not yet acknowledged, requests in flight, size and use of the ring, the latch."""
        return {
            "dirty_bytes": self.dirty_bytes,
            "writes_in_flight": self._runs,
            "ring_bytes": self._ring.capacity,
            "ring_used": self._ring.used,
            "latched": str(self._failure) if self._failure else None,
        }

    @property
    def failure(self) -> StoreError | None:
        """Why no write or flush will succeed any more (invariant 7)."""
        return self._failure

    @property
    def unwritten(self) -> list[Extent]:
        """What was accepted and not yet acknowledged by the service."""
        return joined((e.start, e.end - e.start) for m in (self._flight, self._dirty) for e in m.overlap(0, self.size))

    @property
    def dirty_bytes(self) -> int:
        """Bytes accepted and not yet acknowledged by the service."""
        return self._dirty.bytes + self._flight.bytes

    # -- the Store interface -----------------------------------------------------------------------------------------

    async def read(self, offset: int, length: int) -> Buffer:
        end = offset + length
        newer = self._flight.overlap(offset, end)
        newer += self._dirty.overlap(offset, end)
        if not newer:
            return await self._inner.read(offset, length)
        # Copied now: what is acknowledged while the service is asked leaves the ring, and the answer may be older.
        pieces = [(max(e.start, offset), self._content(e, offset, end)) for e in newer]
        covered = cover(newer, offset, end)
        image = bytearray(length) if covered else bytearray(await self._inner.read(offset, length))
        for start, piece in pieces:
            image[start - offset : start - offset + len(piece)] = piece
        return image

    async def write(self, offset: int, data: Buffer) -> None:
        self._raise_if_failed()
        append = partial(self._ring.append, offset, data)
        record = self._room.accept_now(append)
        if record is None:
            await self._wait_for_room(append)
        elif self._log.since_flush == 1 and self._log.goes_on(offset):
            await self._send_through(record)

    async def zero(self, offset: int, length: int) -> None:
        self._raise_if_failed()
        append = partial(self._ring.append_zero, offset, length)
        if self._room.accept_now(append) is None:
            await self._wait_for_room(append)

    async def flush(self) -> None:
        await attach()
        self._raise_if_failed()
        if self._log.since_flush:
            self._log.flush_begins()
        oldest = self._ledger.oldest_generation()
        if oldest is not None:
            if self._ledger.has(self._generation):
                self._generation += 1
            # Without anything accepted since the last flush began, the generation is new already.
            target = self._generation - 1
            self._flushing = target  # none of an earlier flush is younger
            self._mark_all_due(Priority.FLUSH)
            self._start_runs()
            while (oldest := self._ledger.oldest_generation()) is not None and oldest <= target:
                await self._progress.park()
                self._raise_if_failed()
        await self._inner.flush()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        end = offset + length
        # Taken before asking: what is acknowledged meanwhile may be missing from the answer.
        mine = [e for m in (self._flight, self._dirty) for e in m.overlap(offset, end) if e.data >= 0]
        found = await self._inner.extents(offset, length)
        return joined([*found, *((max(e.start, offset), min(e.end, end) - max(e.start, offset)) for e in mine)])

    async def grow(self, size: int) -> None:
        await self._inner.grow(size)

    async def aclose(self) -> None:
        self._scope.cancel()
        self._senders.close()
        await self._inner.aclose()

    # -- the plain lane (passage.py) ---------------------------------------------------------------------------------

    def _begin_read(self, passage: Passage) -> int:
        """What is newer here is not plain."""
        offset, end = passage.offset, passage.offset + passage.length
        if self._ring.used and (self._dirty.overlaps(offset, end) or self._flight.overlaps(offset, end)):
            return NO
        return self._begin_read_below(passage)

    def _begin_write(self, passage: Passage) -> int:
        """What is accepted at once, and does not go through as a log's write does (invariant 6)."""
        assert passage.data is not None
        if self._failure is not None or (not self._log.since_flush and self._log.goes_on(passage.offset)):
            return NO
        record = self._room.accept_now(partial(self._ring.append, passage.offset, passage.data))
        return NO if record is None else DONE

    def _send_plain(self, run: Run) -> bool:
        """Send a run in the lane of the layer below; False if that is not to be had now."""
        length = run[-1].end - run[0].start
        if self._write_below is None or length > MOST_PLAIN or run[0].data < 0:
            return False
        return launch(Passage(self._write_below, self, run, run[0].start, length, self._joined(run), self._now())) != NO

    def ended(self, passage: Passage) -> None:
        """See Owner: the run was sent."""
        if not self._senders.closed:  # else the ring may be somebody else's already
            self._acknowledged(passage.tag)
            self._run_ended()
            self._start_runs()

    def take_over(self, passage: Passage, rest: Rest) -> None:
        """See Owner."""
        trio.lowlevel.spawn_system_task(self._send_rest, passage.tag, rest)

    async def _send_rest(self, run: Run, rest: Rest) -> None:
        try:
            with priority(self._urgency):
                await rest
        except StoreError as error:
            if self._senders.closed:  # it stays in the ring, for whose that is then
                return
            self._fail(error)
        else:
            if self._senders.closed:
                return
            self._acknowledged(run)
        self._run_ended()
        self._wake.set()

    # -- accepting: no await in any of these -------------------------------------------------------------------------

    def _accept(self, record: Record) -> None:
        self._ledger.add_record(record)
        data = record.data if record.kind == DATA else -1
        extent = DirtyExtent(record.offset, record.offset + record.length, data, self._generation, record.position)
        generation = self._dirty.add(extent, self._ledger)
        self._ledger.settle(record)
        self._queue.add(record)
        self._log.accepted(record)
        if generation <= self._flushing:
            self._mark_all_due(Priority.FLUSH)  # it replaced content that a flush waits for (invariant 5)
        elif self._ring.used * _SHARE > self._ring.capacity:
            self._mark_all_due(Priority.READ)
        elif self._due == math.inf:
            self._due = trio.current_time() + self._idle_s
            self._wake.set()

    def _mark_all_due(self, urgency: Priority) -> None:
        self._urgency = min(self._urgency, urgency) if self._queue.any_due else urgency
        self._queue.until = self._ring.head
        if self._due < math.inf or self._may_begin():
            self._due = math.inf
            self._wake.set()

    def _content(self, extent: DirtyExtent, low: int, high: int) -> bytes:
        start, end = max(extent.start, low), min(extent.end, high)
        if extent.data < 0:
            return bytes(end - start)
        data = extent.data + start - extent.start
        return bytes(self._ring.memory[data : data + end - start])

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            raise StoreError(f"an earlier write was lost: {self._failure}", self._failure.kind, remedy=_AFTER_LOSS)

    async def _wait_for_room(self, append: Append) -> None:
        """Wait for room and acceptance. What waits is told of a failure, wherever in the line."""
        self._mark_all_due(Priority.FLUSH)
        await self._room.wait(append)
        self._raise_if_failed()

    async def _send_through(self, record: Record) -> None:
        """Return when the record is durable, or was replaced by newer content."""
        self._mark_all_due(Priority.FLUSH)
        self._start_runs()
        await attach()
        while self._ledger.is_live(record):
            await self._progress.park()
            self._raise_if_failed()

    # -- sending -----------------------------------------------------------------------------------------------------

    async def _sender(self) -> None:
        with self._scope:
            while True:
                self._start_runs()
                self._wake = trio.Event()
                with trio.move_on_at(self._due) as timer:
                    await self._wake.wait()
                if timer.cancelled_caught:
                    self._mark_all_due(Priority.DRAIN)

    def _start_runs(self) -> None:
        """Begin to send what is to be sent now, as far as that may be in flight. No await."""
        while self._may_begin() and (run := self._queue.next()):
            self._runs += 1
            if not self._send_plain(run):
                self._senders.begin(run)
        run_next()

    def _may_begin(self) -> bool:
        """Whether one more run may be in flight."""
        most = IDLE_IN_FLIGHT if self._urgency is Priority.DRAIN else min(self._slots(), MAX_IN_FLIGHT)
        return self._runs < most and self._flight.bytes < MAX_FLIGHT and self._failure is None

    async def _send_on(self, run: Run) -> Run:
        """Send a run; begin what may be begun then, and return the run that the same task is to send next.

        That is in the step in which the acknowledgement comes. So `_sender` need not be woken while no more runs may be
        in flight. But a task that trio runs leaves all to `_sender`: see senders.py.
        """
        await self._send(run)
        self._run_ended()
        if not self._may_begin():
            return []
        if running() is None:
            self._wake.set()
            return []
        following = self._queue.next()
        self._runs += bool(following)
        self._start_runs()
        return following

    def _run_ended(self) -> None:
        self._runs -= 1
        self._queue.unblock()
        if self._progress:
            self._progress.unpark_all()

    async def _send(self, run: Run) -> None:
        """Send one run; what becomes of it is in the state when this returns."""
        try:
            if run[0].data < 0:
                await self._inner.zero(run[0].start, run[-1].end - run[0].start)
            else:
                await self._inner.write(run[0].start, self._joined(run))
        except StoreError as error:
            self._fail(error)
        else:
            self._acknowledged(run)

    def _fail(self, error: StoreError) -> None:
        self._failure = self._failure or error
        self._room.dismiss()
        self._on_failure()

    def _joined(self, run: Run) -> Buffer:
        memory = self._ring.memory
        pieces = [memory[e.data : e.data + e.end - e.start] for e in run]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _acknowledged(self, run: Run) -> None:
        used = self._ring.used
        self._flight.remove(run)
        for extent in run:
            self._ledger.discount(extent)
        if self._room and self._ring.used < used:
            self._room.serve()
            if self._room:
                self._mark_all_due(Priority.FLUSH)
