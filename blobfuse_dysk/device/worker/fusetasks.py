"""How pyfuse3's tasks wait for the kernel's next request, for less than pyfuse3's own way costs.

pyfuse3 has a pool of tasks. Each one waits its turn at a lock, waits for the descriptor, takes one request and answers
it. So every request costs a hand-over of the lock, a wait in epoll, and one round of trio's scheduler for it alone.
pyfuse3 finds what it waits with in a module attribute, `pyfuse3.trio` (its asyncio mode is made the same way);
`install` puts a stand-in there that differs from trio in three names:

    Lock                    does nothing: `wait_readable` does its work
    lowlevel.current_task   notes that a task begins: each one of pyfuse3's asks for its name then, and only then
    lowlevel.wait_readable  returns at once when a request is there; of the tasks that find none, one (the watcher)
                            waits in epoll and the others are parked

Under load a task that has sent an answer thus finds the next request and begins it in the same step. Worth 4 to 8
microseconds of 76 a request (random 4 KiB reads at depth 32, with and without `install`, in turns).

Each task has a buffer of its own for requests: 1 MiB, all of it in memory before the task's first request is copied
there (see firstread.py). To keep the number of buffers near the number of requests in flight, the task that was parked
last is woken first, so that those beyond the load's depth never get a request; and `shed` ends tasks that were not
needed for a while. (pyfuse3 has a rule of its own: a task that has answered ends when too many wait. Under bursts that
would end and start tasks all the time.)

Invariants
1. A task returns from waiting only if a request is there at that moment, and takes it before anything else runs:
   pyfuse3 takes a read that finds nothing for the end of the connection. (That the watcher was woken does not suffice:
   another task may have taken the request since.)
2. While any task is parked, there is a watcher, or a task was unparked to become the watcher. If that task finds a
   request and takes it instead, it unparks the next one. (A task that `shed` unparks is to end, not to watch.)
3. Requests that are answered without waiting cannot keep trio from its other work: after MOST_IN_A_ROW there is a
   checkpoint.
4. While held (`Turnstile.hold`) no task returns from waiting, so no request is taken. A task of the pool that is not
   among the held ones has a request that is not answered yet. So when all tasks of the pool are held, the kernel waits
   for nothing that this process has.
5. One hold at a time counts: another, or `resume`, ends the one before, and who waits for that one to be drained is
   told that it is not. No task waits for an event that nobody will set.
6. A task that takes its first request has read from the first-read file before, and nothing runs between: it returns
   from waiting with the file in the device's place, and the device is back at once when it waits again. The task that
   waits before all others is excepted: INIT is what it gets first, and the device comes only with that.
"""

from __future__ import annotations

import contextlib
import select
from typing import Any, Literal

import pyfuse3
import trio

from blobfuse_dysk.device.worker.firstread import FirstRead

__all__ = ["Turnstile", "install"]

MOST_IN_A_ROW = 16
SPARE = 2  # tasks that may wait for nothing as long as they like
SHED_S = 10.0  # the others may for so long
_LOOK_S = 0.002  # between looks at whether all tasks are held


class _NoLock:
    async def __aenter__(self) -> None:
        """Pass."""

    async def __aexit__(self, *error: object) -> None:
        """Pass."""


class Turnstile:
    """Stands for trio.lowlevel in pyfuse3."""

    def __init__(self) -> None:
        self._poll: select.poll | None = None
        self._watched = False
        self._parked: dict[trio.lowlevel.Task, None] = {}  # in the order of their coming
        self._least_parked = 0  # since `shed` looked
        self._leaving: set[trio.lowlevel.Task] = set()
        self._closed = False
        self._in_a_row = 0
        self._fd = -1
        self._hold: trio.Event | None = None  # while held: set to let everybody go on
        self._held: set[trio.lowlevel.Task] = set()
        self._first_read: FirstRead | None = None
        self._change: Literal["new", "filling"] | None = None  # what the task that waits next is, or has just done

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    def current_task(self) -> trio.lowlevel.Task:
        """See the module's text; the task that begins comes to `wait_readable` before any other runs."""
        self._change = "new"
        return trio.lowlevel.current_task()

    async def wait_readable(self, fd: int) -> None:
        """Return when a request is there; raises ClosedResourceError after `notify_closing`."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
            self._fd = fd
            self._change = None
        there = self._poll.poll
        new = False
        if self._change:
            new = self._change == "new"
            self._end_change()
        self._in_a_row += 1
        if self._in_a_row >= MOST_IN_A_ROW:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
        if self._hold is None and there(0):
            if new:
                self._begin_filling()
            return
        self._in_a_row = 0
        while not self._closed:
            if self._hold is not None:
                await self._be_held(self._hold)
            elif self._watched:
                await self._park()
            else:
                await self._watch(fd)
            if self._hold is None and there(0):
                if not self._watched:
                    self._unpark()
                if new:
                    self._begin_filling()
                return
        raise trio.ClosedResourceError("the FUSE session ends")

    def notify_closing(self, fd: int) -> None:
        """Make all waiting end."""
        self._closed = True
        self._unpark_all()
        if self._hold is not None:
            self._hold.set()
        trio.lowlevel.notify_closing(fd)

    def hold(self) -> trio.Event:
        """Take no more requests, from this moment on, until `resume`. The result is for `drained`."""
        self.resume()
        hold = self._hold = trio.Event()
        self._unpark_all()
        trio.lowlevel.notify_closing(self._fd)  # for the watcher
        return hold

    async def drained(self, hold: trio.Event, limit_s: float) -> bool:
        """Wait until the requests that were taken before this hold are answered.

        True: they are, and no request is taken any more. False: they are not after `limit_s` seconds, or the session or
        this hold ends; then requests are taken as before, unless another hold began.
        """
        deadline = trio.current_time() + limit_s
        while self._hold is hold and not self._closed and trio.current_time() < deadline:
            pool = next((task.parent_nursery for task in self._held), None)
            if pool is not None and pool.child_tasks == self._held:
                return True
            await trio.sleep(_LOOK_S)
        if self._hold is hold:
            self.resume()
        return False

    def resume(self) -> None:
        """Take requests as before."""
        if self._hold is not None:
            self._hold.set()
            self._hold = None

    async def shed(self) -> None:
        """For ever: end the tasks that were parked all through the last SHED_S seconds, down to SPARE of them."""
        while True:
            self._least_parked = len(self._parked)
            await trio.sleep(SHED_S)
            for task in list(self._parked)[: max(0, self._least_parked - SPARE)]:
                del self._parked[task]
                self._leaving.add(task)
                trio.lowlevel.reschedule(task)

    def _begin_filling(self) -> None:
        """Have the task that runs read the first-read file instead of the request that is there."""
        if self._first_read is None:
            self._first_read = FirstRead(self._fd)
        self._first_read.begin()
        self._change = "filling"

    def _end_change(self) -> None:
        if self._change == "filling" and self._first_read:
            self._first_read.end()
        self._change = None

    async def _be_held(self, hold: trio.Event) -> None:
        task = trio.lowlevel.current_task()
        self._held.add(task)
        try:
            await hold.wait()
        finally:
            self._held.discard(task)

    async def _watch(self, fd: int) -> None:
        """Wait in epoll, for all."""
        self._watched = True
        try:
            with contextlib.suppress(trio.ClosedResourceError):  # by a hold, or by the end of the session
                await trio.lowlevel.wait_readable(fd)
        finally:
            self._watched = False
            self._unpark()

    async def _park(self) -> None:
        """Wait for an `_unpark`; raises ClosedResourceError, which ends the task, if it came from `shed`."""
        task = trio.lowlevel.current_task()
        self._parked[task] = None

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._parked[task]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if task in self._leaving:
            self._leaving.remove(task)
            raise trio.ClosedResourceError("this task is not needed")

    def _unpark(self) -> None:
        """Wake the last that came."""
        if self._parked:
            trio.lowlevel.reschedule(self._parked.popitem()[0])
            self._least_parked = min(self._least_parked, len(self._parked))

    def _unpark_all(self) -> None:
        while self._parked:
            self._unpark()


class _Trio:
    """Stands for trio in pyfuse3."""

    Lock = _NoLock

    def __init__(self) -> None:
        self.lowlevel = Turnstile()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install() -> Turnstile:
    """Make pyfuse3 wait this way, for one session; call it before pyfuse3.main()."""
    stand_in = _Trio()
    pyfuse3.trio = stand_in  # type: ignore[attr-defined]
    return stand_in.lowlevel
