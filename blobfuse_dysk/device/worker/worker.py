"""The worker of one attachment: serves the FUSE connection that its holder owns from the block layer.

Started by the holder as `python -S -P -s worker.py --name NAME` with a channel to the holder as standard input, long
before there is anything to serve, since its imports take longest. The briefing brings the rest.

The first worker opens the block layer, which takes the lease; whatever goes wrong then goes back to the attaching
process. A worker that takes over answers the kernel at once and opens the block layer beside that: requests wait for
it, up to io-timeout, and fail from then on until it can be opened.

The end comes by the holder's `end` (nobody has the disk's file open any more), by the holder's death (the channel
reads as ended) or by the FUSE connection's: flush, release the lease, say `ended`, exit with 0. Any other exit is a
crash and makes the holder start the next worker. Signals that ask for an end are for the holder to judge.
"""

from __future__ import annotations

import base64
import logging
import math
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import trio

from blobfuse_dysk import __version__, environment
from blobfuse_dysk.azure.credential.resolve import credential_from_config
from blobfuse_dysk.azure.credential.watch import watch
from blobfuse_dysk.device.ipc import door, message
from blobfuse_dysk.device.ipc.config import Config
from blobfuse_dysk.device.ipc.messages import Drain, HolderOrder, WorkerEvent, WorkerReady
from blobfuse_dysk.device.ipc.statefile import Lease, State, StateFile
from blobfuse_dysk.device.kernel.fuse import wait_aborted
from blobfuse_dysk.device.kernel.memfd import sealed
from blobfuse_dysk.device.worker import delegate, idle, losses, serving
from blobfuse_dysk.device.worker.blockfile import BlockFile
from blobfuse_dysk.device.worker.controlserver import ControlServer
from blobfuse_dysk.device.worker.geometry import Geometry, measure
from blobfuse_dysk.device.worker.operations import Questions
from blobfuse_dysk.device.worker.requests import Requests
from blobfuse_dysk.device.worker.startup import (
    Briefing,
    OpenStack,
    await_go,
    holder_channel,
    leaves,
    open_real_stack,
    prepare_process,
    resume_state,
    take_briefing,
)
from blobfuse_dysk.errors import DyskError, Kind, LaterError, NotFoundError, StoreError
from blobfuse_dysk.store.lease.token import HoldState
from blobfuse_dysk.store.open import ResumeState
from blobfuse_dysk.store.parts.extents import joined
from blobfuse_dysk.store.stack import Stack

__all__ = ["Worker", "main"]

_START_S = 60.0  # for the first opening of the block layer, while somebody waits for the attach
_ORPHAN_S = 8.0  # for the last flush and the release of the lease when the holder is dead
_RELEASE_S = 5.0  # for the release of the lease when the attach fails
_AGAIN_S = 2.0  # between attempts to open the block layer once more
_log = logging.getLogger(__name__)


class Worker:
    """One life of a worker, from the briefing on."""

    def __init__(self, channel: socket.socket, briefing: Briefing, opener: OpenStack) -> None:
        self._config = Config.take(briefing.config_fd)
        self.credential = credential_from_config(self._config.credential, self._config.address.endpoint)
        self.credential.on_switch = self._keep_credential
        self._ring_fd = briefing.ring_fd
        self._taken_fd = briefing.taken_fd
        self._channel = channel
        self._opener = opener
        self._name = briefing.name
        self._resume = briefing.resume
        self._init = base64.b64decode(briefing.init)
        self._fuse_fd = briefing.fuse_fd
        self._resend = briefing.resend
        self._control = ControlServer(socket.socket(fileno=briefing.control_fd), Questions(self).answers)
        self._requests: Requests | None = None
        self.stack: Stack | None = None
        self._used: Stack | None = None  # the last one that was open
        self._scope = trio.CancelScope()  # around an attempt to open the block layer, and around all its use
        self.open_by = math.inf  # when a block layer that cannot be opened again is given up
        self.geometry: Geometry | None = None
        self._file: BlockFile | None = None
        self._fuse_scope = trio.CancelScope()
        self._opened = trio.Event()  # the block layer is open, or will not be
        self._closing = trio.Event()  # the attachment ends
        self._error: DyskError | None = None
        self._aborted = False

    def take_turn(self, resume: StateFile | None, resend: bool) -> None:
        """The worker before this one is gone; so is what was known when this one was told to stand by."""
        self._resume, self._resend = resume, resend

    async def run(self) -> int:
        """Return the exit status."""
        environment.restore(self._config.variables)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            nursery.start_soon(self._control.run)
            nursery.start_soon(watch, self.credential)
            await (self._take_over(self._resume) if self._resume else self._start())
            if self._file is None:
                error = self._error or DyskError("the attach was given up")
                self.send_event({"event": "error", "error": message.error_to_message(error)})
            else:
                await self._control.answer_watchers(self._farewell())
                self.send_event({"event": "ended", "aborted": self._aborted})
            nursery.cancel_scope.cancel()
        return 1 if self._file is None else 0

    async def _start(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._open_first)
            await self._opened.wait()
            if self.geometry and not self._closing.is_set():
                await self._serve(self.geometry)

    async def _open_first(self) -> None:
        """With the lease that a dead attachment had, if there was one and it is still held; else with a new one."""
        held = resume_state(self._config.held)
        await self._hold_stack(held, _START_S)
        if held and self._file is None and getattr(self._error, "kind", None) is Kind.FENCED:
            await self._hold_stack(None, _START_S)
        self._opened.set()

    async def _take_over(self, earlier: StateFile) -> None:
        self.geometry = Geometry(earlier["size"], earlier["blob_size"], earlier["vhd"])
        if earlier["io_timeout_s"] is not None:
            self.open_by = trio.current_time() + earlier["io_timeout_s"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._open_again, resume_state(earlier["lease"]))
            nursery.start_soon(self._refuse_in_time)
            await self._serve(self.geometry)

    async def _open_again(self, held: ResumeState | None) -> None:
        """Open the block layer, and again until it works, or another node has the disk, or nobody needs it any more.

        The end of the attachment alone is no reason to stop: what the dead worker left is to be written, the lease to
        be released. But then there is no I/O to wait for beyond io-timeout.
        """
        while True:
            ended = await self._hold_stack(held, math.inf)
            if ended or self._error is None or (self._closing.is_set() and trio.current_time() >= self.open_by):
                return
            _log.error("the disk cannot be opened again: %s", self._error)
            final: State = "failed" if isinstance(self._error, NotFoundError) else "fenced"
            ends = losses.is_for_good(self._error)
            detail = message.clip(self._error.line())
            self.send_event({"event": "state", "state": final if ends else "recovering", "detail": detail})
            if ends:
                self._refuse(StoreError(str(self._error), Kind.FENCED))
                return
            await trio.sleep(_AGAIN_S)

    async def _refuse_in_time(self) -> None:
        with trio.CancelScope(deadline=self.open_by):
            await self._closing.wait()
            return
        if self.stack is None:
            self._refuse(StoreError("the disk could not be opened again within io-timeout", Kind.TIMEOUT))

    def _farewell(self) -> DyskError | None:
        """What to say at the end: what was taken and never written, or refused, if anything was."""
        assert self._file
        lost = self._file.lost or (self._resume and self._resume["lost"])
        accepted = self._used.unwritten if self._used else losses.left_in(self._ring_fd)
        return losses.farewell(self._name, self._error, lost, joined([*accepted, *self._file.refused]))

    def _refuse(self, reason: StoreError) -> None:
        if self._file:
            self._file.refuse(reason)

    # The block layer.

    async def _hold_stack(self, held: ResumeState | None, limit_s: float) -> bool:
        """Open the block layer within `limit_s`, keep it open until the attachment ends, then flush and release.

        What goes wrong on the way is left in `_error`. Returns whether it came to that end: nothing is ours after it.
        """
        ended = False
        deadline = min(trio.current_time() + limit_s, self.open_by if self._closing.is_set() else math.inf)
        self._error = None
        with trio.CancelScope(deadline=deadline) as self._scope:
            try:
                async with self._opener(self._config, self.credential, held, self._ring_fd, self._on_state) as stack:
                    await self._use(stack)
                    ended = True
            except DyskError as error:
                self._error = error
            except ExceptionGroup as group:
                errors = leaves(group)
                self._error = next((error for error in errors if isinstance(error, DyskError)), None)
                if not all(isinstance(error, DyskError) for error in errors):
                    raise
        if self._scope.cancelled_caught:
            what = "flushed and released" if self.stack else "opened"
            self._error = DyskError(f"the disk could not be {what} in time", remedy="run: dyskctl doctor")
        self.stack = None
        return ended

    async def _use(self, stack: Stack) -> None:
        try:
            geometry = self.geometry or await measure(stack.store, self._config.options, stack.last_page)
        except BaseException:
            with trio.move_on_after(_RELEASE_S, shield=True):
                await stack.release()
            raise
        if not self._closing.is_set():
            self._scope.deadline = math.inf
        self.geometry, self.stack, self._used = geometry, stack, stack
        stack.on_detail = lambda: self._on_state(stack.state)
        self._opened.set()
        if self._resume:
            stack.set_io_timeout(self._resume["io_timeout_s"])  # these may have been changed since the attach
            stack.set_limits(self._resume["iops"], self._resume["mbps"])
            if self._resume["state"] == "failed":  # that is for good, whatever this worker could do
                stack.fail(StoreError(self._resume["detail"] or "it failed", Kind.REJECTED))
        if self._file:
            self._file.provide(stack.store)
            self._on_state(stack.state)
        await self._closing.wait()
        try:
            await stack.store.flush()
        except StoreError as error:
            _log.error("the last flush failed: %s", error)
            self._error = error
        await stack.release()

    def _on_state(self, state: HoldState) -> None:
        """The fence changed its state. Until the disk is served, that is nobody's business."""
        if self.stack and not self._closing.is_set() and state != "released":
            detail = self.stack.detail and message.clip(self.stack.detail)
            _log.info("the attachment is %s%s", state, f": {detail}" if detail else "")
            self.send_event({"event": "state", "state": state, "detail": detail, "lease": self._lease()})

    def _lease(self) -> Lease | None:
        if not self.stack or self.stack.lease_id is None or self.stack.epoch is None:
            return None
        return {"id": self.stack.lease_id, "epoch": self.stack.epoch, "seconds": self.stack.lease_s}

    # FUSE.

    async def _serve(self, geometry: Geometry) -> None:
        """Serve the FUSE connection until the attachment ends, or the connection does."""
        options = self._config.options
        self._file = BlockFile(
            geometry.size,
            read_only=options.read_only,
            on_init=self._on_init,
            on_release=lambda: self.send_event({"event": "released"}),
            on_loss=lambda error: self.send_event({"event": "state", "lost": message.clip(str(error))}),
        )
        if self.stack:
            self._file.provide(self.stack.store)
        self._requests = Requests(self._fuse_fd, self._init, self._file, resend=self._resend, taken_fd=self._taken_fd)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_connection)
            nursery.start_soon(idle.give_memory_back, self._asked, self._give_spare_back)
            with self._fuse_scope:
                await self._requests.run()
            nursery.cancel_scope.cancel()
        self._aborted = not self._closing.is_set()
        self._begin_end()

    def _asked(self) -> int:
        return self.stack.requests if self.stack else 0

    def _give_spare_back(self) -> None:
        if self._requests:
            self._requests.trim()
        if self.stack and self.stack.ring:
            self.stack.ring.give_back(self._ring_fd)

    def _on_init(self) -> None:
        assert self.geometry
        geometry = self.geometry
        event: WorkerReady = {
            "event": "ready",
            "size": geometry.size,
            "blob_size": geometry.blob_size,
            "vhd": geometry.vhd,
            "worker_version": __version__,
        }
        if self.stack:
            event["lease"] = self._lease()
        self.send_event(event)

    async def _watch_connection(self) -> None:
        """Requests in progress would go on for up to io-timeout after the kernel gave the connection up."""
        await wait_aborted(self._fuse_fd)
        _log.error("the FUSE connection was aborted")
        self._fuse_scope.cancel()

    def _begin_end(self, *, limit_s: float = math.inf) -> None:
        """Stop serving, flush, release, exit; `limit_s` is for the last two."""
        first = not self._closing.is_set()
        self._closing.set()
        if self.stack is None and self._resume is None:
            self._scope.cancel()  # nothing was written yet
        limit = trio.current_time() + limit_s
        self.open_by = min(self.open_by, limit)
        self._scope.deadline = min(self._scope.deadline, limit if self.stack else self.open_by)
        if self._requests and first:
            self._requests.close()

    # The holder, and questions.

    async def _listen(self) -> None:
        with trio.socket.from_stdlib_socket(self._channel.dup()) as channel:
            async with trio.open_nursery() as nursery:
                while not (received := await door.receive_async(channel, door.HOLDER_TO_WORKER, _log.error)).gone:
                    for fd in received.fds:
                        os.close(fd)  # they come with a briefing, and this worker has one
                    if received.message:
                        self._on_message(received.message, nursery)
                _log.error("the holder is gone; the attachment ends")
                self._begin_end(limit_s=_ORPHAN_S)
                self._fuse_scope.cancel()

    def _on_message(self, order: HolderOrder, nursery: trio.Nursery) -> None:
        if order["op"] == "drain" and self._requests:
            nursery.start_soon(self._drain, self._requests, self._requests.hold(), order)
        elif order["op"] == "resume" and self._requests:
            self._requests.resume()
        elif order["op"] == "end":
            self._begin_end()
        elif order["op"] == "flush" and self.stack:
            nursery.start_soon(self._flush, self.stack)

    async def _flush(self, stack: Stack) -> None:
        try:
            await stack.store.flush()
        except StoreError as error:
            _log.error("the flush that the holder asked for failed: %s", error)

    async def _drain(self, requests: Requests, hold: trio.Event, order: Drain) -> None:
        """Another worker is to take over: it may as soon as the kernel waits for nothing that this one has."""
        drained = await requests.drained(hold, order["limit_s"])
        self.send_event({"event": "drain", "id": order["id"], "drained": drained})

    @property
    def opening_error(self) -> DyskError | None:
        """Why the last attempt to open the disk failed."""
        return self._error

    def _keep_credential(self) -> None:
        """Have later workers begin with the credential as it is now."""
        self._config = replace(self._config, credential=self.credential.to_config())
        memfd = sealed("dysk-config", self._config.encode())
        self.send_event({"event": "config"}, memfd)
        os.close(memfd)

    def show(self, geometry: Geometry) -> None:
        """The disk is larger now: later workers learn it from the holder, then the kernel is told (growth.py)."""
        if not self.send_event({"event": "state", "size": geometry.size, "blob_size": geometry.blob_size}):
            raise LaterError("the holder does not listen now", remedy="try again in a moment")
        self.geometry = geometry
        if self._file and self._requests:
            self._file.grow(geometry.size)
            self._requests.tell_size()

    def send_event(self, event: WorkerEvent, *fds: int) -> bool:
        """To the holder; False if it does not take it now."""
        return message.send(self._channel, event, fds, wait=False)


def main(opener: OpenStack = open_real_stack) -> int:
    """Take the briefing from standard input's channel, and work. Return the exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    channel, monitor = holder_channel(), delegate.spawn(sys.argv[-1])  # of `--name NAME`
    briefing = take_briefing(channel)
    if briefing is None:
        return 1
    prepare_process(briefing, monitor)
    worker = Worker(channel, briefing, opener)
    if briefing.standby:
        turn = await_go(channel)
        if turn is None:
            return 1
        worker.take_turn(*turn)
    serving.await_turn(briefing.ring_fd)
    return trio.run(worker.run)


if __name__ == "__main__":
    os._exit(main())  # nothing is left to tidy up, and somebody waits for the end
