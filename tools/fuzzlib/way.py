"""One way of doing what channel.py has done: a kernel's end of a socket, a memory, one worker after the other."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Any
from unittest import mock

from blobfuse_dysk.device.kernel import fuse
from blobfuse_dysk.device.kernel.fuse import IN_HEADER
from blobfuse_dysk.device.native import _channel
from blobfuse_dysk.device.worker import taken as module
from blobfuse_dysk.device.worker.channel import Channel, KeptChannel
from blobfuse_dysk.device.worker.taken import Taken

__all__ = ["DATA_AT", "MOST", "RANGE", "Way"]

MOST = 100 << 10
"""Bytes of a write."""
RANGE = struct.Struct("<QQIIQII")
"""struct fuse_read_in, fuse_write_in."""
DATA_AT = IN_HEADER.size + RANGE.size
"""Where in a WRITE its data begins."""
_IMAGES = (bytearray(1 << 20), bytearray(1 << 20))  # those of two ways


class Way:
    """A device, a memory, the channel of one worker after the other."""

    def __init__(self, in_c: bool, keeps: bool) -> None:
        self._in_c = in_c
        self.ours, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (self.ours, self.kernel):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            each.setblocking(False)
        self.memory = os.memfd_create("taken") if keeps else -1
        self.refused: list[tuple[int, int]] = []
        self.taken: Taken | None = None
        self.channel: Any = None
        self.begin()

    def begin(self) -> None:
        """The next worker."""
        fd = self.ours.fileno()
        self.taken = taken = Taken(self.memory, MOST + DATA_AT) if self.memory >= 0 else None
        if not self._in_c:
            self.channel = Channel(fd, MOST) if taken is None else KeptChannel(fd, taken)
        elif taken is None:
            self.channel = _channel.Channel(fd, MOST)
        else:
            self.channel = _channel.Channel(fd, MOST, taken.map(0, taken.size), taken.fd, taken.slabs)

    def left(self, waits: Callable[[int], bool]) -> list[int]:
        """What `Taken.left` finds. waits: whether the kernel waits for a number."""
        assert self.taken is not None
        with (
            mock.patch.object(module._log, "disabled", True),
            mock.patch.object(fuse, "waits_for", lambda _, unique: waits(unique)),
            mock.patch.object(fuse, "refuse", lambda _, unique, code: self.refused.append((unique, code))),
        ):
            return self.taken.left(-1)

    def heard(self) -> list[bytes]:
        """What the kernel was told; two messages at most."""
        found: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(found) < 2:
                found.append(self.kernel.recv(1 << 20))
        return found

    def slots(self) -> list[tuple[int, int]]:
        """Where each begins, and its size."""
        slabs = self.taken.slabs if self.taken else ()
        return [(at, slab.size) for slab in slabs for at in range(slab.start, slab.end, slab.size)]

    def kept(self, most: int = MOST * 2) -> dict[int, bytes]:
        """What is in the slots that are not empty, by their places; the first `most` bytes."""
        found = {}
        for at, _ in self.slots():
            (length,) = struct.unpack("I", os.pread(self.memory, 4, at))
            if length:
                found[at] = os.pread(self.memory, min(length, most), at)
        return found

    def image(self) -> bytearray:
        """All of the memory, until this is called again."""
        image = _IMAGES[self._in_c]
        if self.taken is not None:
            assert os.preadv(self.memory, [image], 0) == self.taken.size <= len(image)
        return image

    def close(self) -> None:
        """Let go of all of it."""
        self.channel = None
        self.ours.close()
        self.kernel.close()
        if self.memory >= 0:
            os.close(self.memory)
