"""pyfuse3 for all requests that are not about data: names, attributes, opening and closing, and whatever else may come.

libfuse reads requests from a descriptor and writes the answers to it. Here that is not the FUSE device but one end of a
socket pair, which keeps messages apart as the device does. What pyfuse3 is to serve is sent into the other end, and
what comes out of that is written to the device. So the device has one reader, which sees every request first.

Each worker's libfuse has to be given the kernel's INIT before all else, which the kernel sent once, to the first one;
the holder has kept it (kernel/fuse.py). The first worker's answer is the one the kernel waits for; a later one's is for
a request that is gone.

Sources: libfuse 3, fuse_session_mount() (`/dev/fd/N` is a descriptor that is mounted already), do_init(),
fuse_session_receive_buf().
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import deque
from collections.abc import Iterator

import pyfuse3
import trio

from blobfuse_dysk.device.kernel.fuse import IN_HEADER, INTERRUPT, NO_ANSWER, OUT_HEADER, without_splicing

__all__ = ["Others"]


class Others:
    """One session of pyfuse3. init: the kernel's INIT. pending: requests that are not answered, INIT among them."""

    def __init__(self, operations: pyfuse3.Operations, init: bytes) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._unsent: deque[bytes] = deque()
        self._full = trio.Event()  # when something is unsent
        self._first = bytearray(1)  # of an answer that is looked at
        self.pending = 1
        self._ours.send(without_splicing(init))  # which a socket cannot be the source of
        pyfuse3.init(operations, f"/dev/fd/{theirs.detach()}", set())

    def send(self, request: bytes) -> None:
        """Have a request served, as soon as pyfuse3 takes it.

        That one is not to be waited for any longer (INTERRUPT) is kept back: nobody gives up what a device asked for,
        and libfuse would wait for the request that is meant, which it may never see.
        """
        opcode = IN_HEADER.unpack_from(request)[1]
        if opcode != INTERRUPT:
            self.pending += opcode not in NO_ANSWER
            self._unsent.append(request)

    def answers(self) -> Iterator[bytes]:
        """What there is for the device: answers, and notices that nobody asked for. Sends on what was not sent yet."""
        while self._unsent:
            try:
                self._ours.send(self._unsent[0])
            except BlockingIOError:
                self._full.set()
                break
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                self.pending -= 1
                unique = IN_HEADER.unpack_from(self._unsent[0])[2]
                yield OUT_HEADER.pack(OUT_HEADER.size, -errno.E2BIG, unique)
            self._unsent.popleft()
        with contextlib.suppress(BlockingIOError):
            while size := self._ours.recv_into(self._first, 1, socket.MSG_PEEK | socket.MSG_TRUNC):
                answer = self._ours.recv(size)
                self.pending -= OUT_HEADER.unpack_from(answer)[2] != 0
                yield answer

    async def answered(self) -> None:
        """Return when `answers` may have something."""
        await trio.lowlevel.wait_readable(self._ours)

    async def sendable(self) -> None:
        """Return when `answers` can send on what it could not."""
        await self._full.wait()
        self._full = trio.Event()
        await trio.lowlevel.wait_writable(self._ours)
