"""Which request may start, and when: slots, the pace, priorities. The mechanism of Throttle.

Theory. Two things hold requests back. The pace (pacer.py) spaces them in time, once a rate is known. Slots bound what
is in flight: additive increase, multiplicative decrease, as TCP does it. A window is `limit` successes: each success
adds 1/limit, so a window adds one. It grows only while the limit is what holds requests back, and only while latency
has not risen to several times its own floor (beyond that point more requests only queue somewhere else). A timeout,
or a refusal that the pace could not foresee, halves the limit, once per round trip: refusals of requests that
started before the last cut say nothing about the new limit. A large request takes a slot for each SLOT begun, so
that the first window of the largest writes does not overrun a small disk.

Waiting is first in, first out inside a priority; a lower number goes first. So that a stream of urgent requests does
not starve the others for ever, a queue that was passed over PASSED_OVER times gets the next turn.

Invariants
1. in_flight counts slots given and not returned. Slots are given only while they fit into int(limit), or to a request
   that is alone; a task that is cancelled while it waits holds none (trio does not cancel a task that is
   already rescheduled). So a slot is never lost. No await inside any method but `enter`.
2. Whenever tasks wait, something will call `_hand_out`: a request in flight (its `leave`), or the timer. The timer is a
   system task that lives only as long as there are tasks that wait for their time; an idle limiter has none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

import trio

from blobfuse_dysk.clock import bound_clock
from blobfuse_dysk.store.contract import MAX_WRITE
from blobfuse_dysk.store.parts.pacer import Pacer
from blobfuse_dysk.store.parts.priority import Priority

__all__ = ["Limiter"]

FIRST = 32
MOST = 256
SLOT = 256 << 10  # bytes
MOST_SLOTS = 1 + MAX_WRITE // SLOT
PASSED_OVER = 8
TICK_S = 0.001  # requests that come due within this time start together
SLOW = 4.0  # times the floor of latency: growth stops
SIZE_CLASSES = (64 << 10, 1 << 20)  # bytes; requests of like size are compared with each other
FLOOR_S = 60.0  # how long a floor of latency is believed
FLOOR_RISE = 1.25  # and how much it may rise then: under constant load, the latency that we make is no new floor


class _Latency:
    """Floor and moving average of one class of request sizes, in seconds."""

    __slots__ = ("_floor_until", "_next_floor", "average", "floor")

    def __init__(self) -> None:
        self.floor = self.average = 0.0
        self._next_floor = float("inf")
        self._floor_until = 0.0

    def add(self, seconds: float, now: float) -> None:
        if not self.average:
            self.floor = self.average = seconds
            self._floor_until = now + FLOOR_S
            return
        self.average += (seconds - self.average) / 16
        if seconds < self._next_floor:
            self._next_floor = seconds
            if seconds < self.floor:
                self.floor = seconds
        if now >= self._floor_until:
            self.floor, self._next_floor = min(self._next_floor, self.floor * FLOOR_RISE), float("inf")
            self._floor_until = now + FLOOR_S

    @property
    def risen(self) -> bool:
        return self.average > self.floor * SLOW


class _Waiter:
    """A task that waits for its turn."""

    __slots__ = ("length", "slots", "task")

    def __init__(self, task: trio.lowlevel.Task, length: int, slots: int) -> None:
        self.task = task
        self.length = length
        self.slots = slots


class Limiter:
    """Slots and turns for requests. Times are those of trio.current_time(), lengths are bytes of data moved."""

    def __init__(self, *, first: int = FIRST, most: int = MOST, pacer: Pacer | None = None) -> None:
        self.limit = float(first)
        self.in_flight = 0
        self.cuts = 0
        self.waiting = 0  # calls that wait for their turn
        self.pacer = pacer or Pacer()
        self._most = float(most)
        self._queues: list[deque[_Waiter]] = [deque() for _ in Priority]
        self._passed_over = [0] * len(self._queues)
        self._cut_at = float("-inf")
        self._latency = [_Latency() for _ in range(len(SIZE_CLASSES) + 1)]
        self._timer = False
        self._requests = self._bytes = 0  # in flight
        self._now = bound_clock()

    async def enter(self, priority: int, length: int = 0) -> float:
        """Wait, attached, for the turn of a request; return when it starts. Then call `leave`, whatever happens."""
        started = self.enter_at_once(length)
        if started is None:
            waiter = _Waiter(trio.lowlevel.current_task(), length, _slots(length))
            await self._wait(priority, waiter, trio.current_time())
            started = trio.current_time()
        return started

    def enter_at_once(self, length: int = 0) -> float | None:
        """`enter` for a request that nothing holds back; None, and nothing has happened, if it would have to wait."""
        now = self._now()
        if not self.may_start(length, now):
            return None
        self.start(length, now)
        return now

    def may_start(self, length: int, now: float) -> bool:
        """Whether nothing holds a request back. now: trio.current_time(), here as below."""
        slots = _slots(length)
        if self.waiting or (self.in_flight and self.in_flight + slots > self.limit):
            return False
        return not self.pacer.paced or now >= self.pacer.due()

    def start(self, length: int, now: float) -> None:
        """A request starts whose turn it is."""
        self.in_flight += _slots(length)
        self._requests += 1
        self._bytes += length
        if self.pacer.paced:
            self.pacer.charge(length, now)

    def leave(self, length: int = 0) -> None:
        """Return the slots of a request."""
        self.in_flight -= _slots(length)
        self._requests -= 1
        self._bytes -= length
        if self.waiting:
            self._hand_out(trio.current_time())

    def succeeded(self, started: float, length: int) -> None:
        """A request of `length` bytes came back well: perhaps there is room for more. Call before `leave`."""
        self.succeeded_at(started, length, self._now())

    def succeeded_at(self, started: float, length: int, now: float) -> None:
        """The same."""
        self.pacer.succeeded(length, now)
        latency = self._latency[bisect_left(SIZE_CLASSES, length)]
        latency.add(now - started, now)
        if self.limit < self._most and not latency.risen and self._full:
            self.limit = min(self._most, self.limit + _slots(length) / self.limit)

    def refused(self, started: float, retry_after_s: float | None) -> None:
        """The service turned a request away: slow down. Call before `leave`.

        retry_after_s: for how long it wants not to be asked again. Where so much is refused that it must mean all
        requests, all pause for that time; of one refusal among many that get through, the repeat does (retry.py).
        """
        now = trio.current_time()
        pacer = self.pacer
        much = pacer.refused(started, now, (self._requests, self._bytes))
        if much:
            self.timed_out(started)
        if retry_after_s is not None:
            pacer.asked(retry_after_s, now, much=much, last=self._requests == 1 and not self.waiting)

    def timed_out(self, started: float) -> None:
        """The service is overrun, or gone: halve what is in flight. Call before `leave`."""
        if started > self._cut_at:
            self._cut_at = trio.current_time()
            self.limit = max(1.0, self.limit / 2)
            self.cuts += 1

    def is_clear(self, length: int) -> bool:
        """Whether a request of this length would start at once."""
        return (
            not self.waiting
            and not self.pacer.paced
            and (self.in_flight + _slots(length) <= self.limit or not self.in_flight)
        )

    @property
    def _full(self) -> bool:
        """Whether it is the limit that holds requests back, or would hold back a large one."""
        if self.waiting and self.pacer.paced:
            return trio.current_time() >= self.pacer.due()
        return bool(self.waiting) or self.in_flight + MOST_SLOTS > self.limit

    async def _wait(self, priority: int, waiter: _Waiter, now: float) -> None:
        queue = self._queues[priority]
        queue.append(waiter)
        self.waiting += 1

        def abort(_: object) -> trio.lowlevel.Abort:
            queue.remove(waiter)
            self.waiting -= 1
            return trio.lowlevel.Abort.SUCCEEDED

        if self.waiting == 1:
            self._hand_out(now)  # starts nothing, as `enter` found that this one must wait; sets the timer if for time
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _hand_out(self, now: float) -> bool:
        """Start all that may start; whether it is only time that the next one waits for."""
        pacer = self.pacer
        waits = False
        while self.waiting:
            level = self._choose()
            waiter = self._queues[level][0]
            if self.in_flight and self.in_flight + waiter.slots > self.limit:
                break
            if pacer.paced and now < pacer.due():
                waits = True
                break
            self._pass_over(level)
            self._queues[level].popleft()
            self.waiting -= 1
            self.start(waiter.length, now)
            trio.lowlevel.reschedule(waiter.task)
        if pacer.paced:
            pacer.held(now, waits)
        if waits and not self._timer:
            self._timer = True
            trio.lowlevel.spawn_system_task(self._keep_time)
        return waits

    async def _keep_time(self) -> None:
        """Start requests as they come due, until none waits for time."""
        try:
            waits = True
            while waits:
                await trio.sleep_until(max(self.pacer.due(), trio.current_time() + TICK_S))
                waits = self._hand_out(trio.current_time())
        finally:
            self._timer = False

    def _choose(self) -> int:
        """The queue whose turn it is: the most urgent one, or one that was passed over too often."""
        waiting = [level for level, queue in enumerate(self._queues) if queue]
        return next((level for level in waiting if self._passed_over[level] >= PASSED_OVER), waiting[0])

    def _pass_over(self, chosen: int) -> None:
        for level, queue in enumerate(self._queues):
            if queue:
                self._passed_over[level] += 1
        self._passed_over[chosen] = 0


def _slots(length: int) -> int:
    return 1 if length < SLOT else min(1 + length // SLOT, MOST_SLOTS)
