"""Takes the kernel's requests and has them served: those about data by BlockFile itself, all others through pyfuse3.

Theory. A request about data is served by one of a pool of tasks, which takes the next one as soon as it has answered,
in the same step. One task, the taker, waits for the device, and hands what it finds to the idle task that came last.
The tasks are detached (detached.py): a request that is served without waiting for anything but the service's plain
answer never goes through trio's scheduler. Every other request goes to pyfuse3 (others.py), whose answers the relay
writes to the device.

Invariants
1. `_taken` counts the requests about data that were read from the device and not answered, `Others.pending` the other
   ones. Each request is answered once; a request whose task is cancelled is not, and stays with the kernel.
2. While held (`hold`) no request is read from the device. So once both counts are 0, the kernel waits for nothing that
   this process has. One hold at a time counts: another, or `resume`, ends the one before, and who waits for that one to
   be drained is told that it is not. No task waits for an event that nobody will set.
3. Requests that are answered without waiting cannot keep trio from its other work: after MOST_IN_A_ROW of them the
   taker waits for the device in trio's own way, which is a checkpoint.
4. An idle task is in `_idle`, and only there; who takes it out has it go on in the same step.
5. Before the first request is read, the requests that a predecessor left unanswered are asked for (`resend`): else
   those read in between would come twice. Source: Documentation/filesystems/fuse.rst, FUSE_NOTIFY_RESEND.
6. Where they lie in memory instead (`taken_fd`; taken.py), all of them are served first, side by side as they were
   before, and none is read from the device until these are answered. A hold, or the end, may come meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable

import pyfuse3
import trio

from blobfuse_dysk.detached import Detached
from blobfuse_dysk.device.kernel.fuse import RESEND, largest_write, size_changed
from blobfuse_dysk.device.worker.blockfile import DISK_INODE, BlockFile
from blobfuse_dysk.device.worker.channel import FSYNC, READ, ROOM, Request, open_channel
from blobfuse_dysk.device.worker.others import Others
from blobfuse_dysk.device.worker.taken import Taken
from blobfuse_dysk.store.contract import Buffer
from blobfuse_dysk.store.passage import DONE, NO, Passage, Rest, launch

__all__ = ["Requests"]

MOST_IN_A_ROW = 16
MOST_TASKS = 320  # the kernel has MAX_BACKGROUND requests of the loop device in progress; others come on top
_USUAL_WRITE = 1 << 20  # bytes
_LOOK_S = 0.002  # between looks at whether all is answered
_log = logging.getLogger(__name__)


class Requests:
    """Serves `file` on the FUSE device that is open as `fd`. init: as the kernel sent it. For one `run`.

    resend: a predecessor left requests. taken_fd: memory where all that are taken are kept, as were the predecessor's.
    """

    def __init__(self, fd: int, init: bytes, file: BlockFile, *, resend: bool, taken_fd: int | None = None) -> None:
        self._fd = fd
        self._file = file
        self._resend = resend and taken_fd is None
        taken = None if taken_fd is None else Taken(taken_fd, largest_write() + ROOM)
        self._left = taken.left(fd) if taken else []  # where requests of a predecessor are
        self._channel = open_channel(fd, _USUAL_WRITE, taken)
        self._others = Others(file, init)
        self._idle: list[Detached] = []
        self._tasks = 0
        self._free = trio.Event()  # of a task that became idle, where the taker waits for one
        self._taken = 0
        self._in_a_row = 0
        self._hold: trio.Event | None = None  # while held: set to let the taker go on
        self._closing = False
        self._over = False  # the device is no longer ours: what comes to an end is answered no more
        self._taking = trio.CancelScope()
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Serve until `close` was called and what was taken is answered, or the connection ends."""
        if self._resend:
            self._channel.write(RESEND)
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._relay, self._others.answered)
                self._nursery.start_soon(self._relay, self._others.sendable)
                self._nursery.start_soon(pyfuse3.main)
                with self._taking:
                    await self._take_up()
                    await self._take_all()
                while self._pending and not self._channel.gone:  # noqa: ASYNC110 (several things count it)
                    await trio.sleep(_LOOK_S)
                pyfuse3.terminate()
                self._nursery.cancel_scope.cancel()
        finally:
            self._over = True

    def close(self) -> None:
        """Take no more requests; have `run` end."""
        self._closing = True
        self.resume()
        self._taking.cancel()

    def tell_size(self) -> None:
        """The file has another size: the kernel knows when this returns."""
        self._channel.write(size_changed(DISK_INODE))

    def trim(self) -> None:
        """Free the buffers that no request has now."""
        self._channel.trim()

    def hold(self) -> trio.Event:
        """Take no more requests, from this moment on, until `resume`. The result is for `drained`."""
        self.resume()
        self._hold = trio.Event()
        return self._hold

    async def drained(self, hold: trio.Event, limit_s: float) -> bool:
        """Wait until the requests that were taken before this hold are answered.

        True: they are, and no request is taken any more. False: they are not after `limit_s` seconds, or the session or
        this hold ends; then requests are taken as before, unless another hold began.
        """
        deadline = trio.current_time() + limit_s
        while self._hold is hold and not self._closing and trio.current_time() < deadline:
            if not self._pending:
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

    @property
    def _pending(self) -> int:
        return self._taken + self._others.pending

    async def _take_up(self) -> None:
        """Serve what a predecessor left, to its end."""
        if not self._left:
            return
        _log.info("%d requests that were taken before are served first", len(self._left))
        for at in self._left:
            request = self._channel.take_up(at)
            if isinstance(request, bytes):
                self._others.send(request)
            else:
                self._taken += 1
                self._start(request)
        self._pass_on()
        while self._pending and not self._channel.gone:  # noqa: ASYNC110 (several things count it)
            await trio.sleep(_LOOK_S)
        self._left.clear()

    async def _take_all(self) -> None:
        while not self._channel.gone:
            while self._channel.full:  # noqa: ASYNC110 (who looks at a request's data says so to nobody)
                await trio.sleep(_LOOK_S)
            await trio.lowlevel.wait_readable(self._fd)
            if self._hold is not None:
                await self._hold.wait()
                continue
            self._in_a_row = 0
            while (request := self._take()) is not None:
                if self._begin(request):
                    continue
                self._start(request)
                if not self._idle and self._tasks >= MOST_TASKS:
                    await self._wait_for_idle()

    def _start(self, request: Request) -> None:
        if self._idle:
            self._idle.pop().go_on(request)
        else:
            self._tasks += 1
            self._nursery.start_soon(self._serve, request)

    async def _wait_for_idle(self) -> None:
        while not self._idle:
            self._free = trio.Event()
            await self._free.wait()

    def _take(self) -> Request | None:
        """The next request about data, None if it is not to be taken now; others are handed on."""
        if self._left:
            return None
        self._in_a_row += 1
        while self._in_a_row <= MOST_IN_A_ROW and self._hold is None and not self._closing:
            request = self._channel.take()
            if request is None:
                return None
            if not isinstance(request, bytes):
                self._taken += 1
                return request
            self._others.send(request)
            self._pass_on()
        return None

    def _begin(self, request: Request) -> bool:
        """Have it served in the plain lane; False if it is none for that."""
        opcode, unique, offset, size, data = request
        if opcode == FSYNC:
            return False
        passage = self._file.passage(self, unique, offset, size, data)
        if passage is None:
            return False
        began = launch(passage)
        if began == DONE:
            self._answer_passage(passage)
        return began != NO

    def ended(self, passage: Passage) -> None:
        """See Owner."""
        if self._over:
            return
        self._answer_passage(passage)
        try:
            request = self._take()
        except OSError as error:  # it ends `run`, as if the taker had seen it, and not the task that brought an answer
            self._nursery.start_soon(_raise, error)
            return
        if request is not None and not self._begin(request):
            self._start(request)

    def take_over(self, passage: Passage, rest: Rest) -> None:
        """See Owner. Such a task is none of the nursery: what is left of a write has to come to its end."""
        trio.lowlevel.spawn_system_task(self._rest, passage, rest)

    async def _rest(self, passage: Passage, rest: Rest) -> None:
        try:
            passage.result = await self._file.rest(passage, rest)
        except Exception as error:
            if not self._over:
                self._taken -= 1
                self._refuse(passage.tag, error, passage.data)
        else:
            if not self._over:
                self._answer_passage(passage)

    def _answer_passage(self, passage: Passage) -> None:
        channel, unique, data = self._channel, passage.tag, passage.data
        self._taken -= 1
        try:
            if data is None:
                assert passage.result is not None
                channel.answer(unique, passage.result)
            else:
                channel.acknowledge(unique, passage.length)
                channel.give_back(data)
                self._file.written(passage.offset, passage.length)
        except Exception as error:
            self._refuse(unique, error, data)

    async def _serve(self, request: Request | None) -> None:
        me = Detached()

        def leave() -> None:
            self._idle.remove(me)

        while True:
            if request is None:
                self._idle.append(me)
                self._free.set()
                request = await me.wait(leave)
            else:
                await self._answer(request)
                self._taken -= 1
                request = self._take()

    async def _answer(self, request: Request) -> None:
        opcode, unique, offset, size, data = request
        channel = self._channel
        try:
            if opcode == READ:
                channel.answer(unique, await self._file.read(DISK_INODE, offset, size))
            elif opcode == FSYNC:
                await self._file.fsync(DISK_INODE, False)
                channel.end(unique)
            else:
                assert data is not None
                written = await self._file.write(DISK_INODE, offset, data)
                channel.acknowledge(unique, written)
                channel.give_back(data)
        except Exception as error:
            self._refuse(unique, error, data)

    def _refuse(self, unique: int, error: Exception, data: Buffer | None) -> None:
        """Its data is given back, too: who remembers the error has, in its traceback, who looked at that."""
        code = errno.EIO
        if isinstance(error, pyfuse3.FUSEError):
            code = error.errno
        else:
            _log.exception("a request could not be answered")
        try:
            self._channel.end(unique, code)
        except OSError as failed:
            _log.error("the kernel takes no answer: %s", failed)
        with contextlib.suppress(ValueError, BufferError):  # it was given back, or somebody looks at it
            self._channel.give_back(data)

    def _pass_on(self) -> None:
        for answer in self._others.answers():
            self._channel.write(answer)

    async def _relay(self, wait: Callable[[], Awaitable[None]]) -> None:
        while True:
            await wait()
            self._pass_on()


async def _raise(error: Exception) -> None:
    raise error
