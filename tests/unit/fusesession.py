"""Tasks that wait for requests as pyfuse3's do, on a socket pair in the place of the FUSE device."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator

import pyfuse3
import pytest
import trio

from blobfuse_dysk.device.worker import fusetasks
from blobfuse_dysk.device.worker.firstread import NOTHING

__all__ = ["TASKS", "Session", "kernel"]

TASKS = 5


class Session:
    """Tasks that do what pyfuse3's do: wait, take one request, and answer it after a while, or at once."""

    def __init__(self, device: socket.socket) -> None:
        self.device = device
        self.trio = pyfuse3.trio  # type: ignore[attr-defined]
        self.lock = self.trio.Lock()
        self.taken: list[bytes] = []
        self.takers: list[trio.lowlevel.Task] = []  # of each of these
        self.fillers: list[trio.lowlevel.Task] = []  # who read the first-read file
        self.ended = 0
        self.progress = trio.Event()
        self.answer = trio.lowlevel.checkpoint

    async def task(self) -> None:
        self.trio.lowlevel.current_task()
        while True:
            try:
                async with self.lock:
                    await self.trio.lowlevel.wait_readable(self.device.fileno())
            except trio.ClosedResourceError:
                self.ended += 1
                return
            request = os.read(self.device.fileno(), 1 << 16)  # BlockingIOError if there is none: invariant 1
            if request.startswith(NOTHING):
                self.fillers.append(trio.lowlevel.current_task())
                continue
            self.takers.append(trio.lowlevel.current_task())
            self.taken.append(request)
            self.progress.set()
            self.progress = trio.Event()
            await self.answer()

    async def until(self, count: int) -> None:
        with trio.fail_after(10):
            while len(self.taken) < count:
                await self.progress.wait()


@pytest.fixture
async def kernel(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[socket.socket, Session]]:
    """The kernel's end of the connection, and the session at the other."""
    monkeypatch.setattr(pyfuse3, "trio", trio)
    fusetasks.install()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, Session(theirs)
