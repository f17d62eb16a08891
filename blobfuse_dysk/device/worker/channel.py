"""The FUSE device: reads the kernel's requests, writes the answers.

Of each request that is about data (READ, WRITE, FSYNC) it makes a tuple; all others stay the bytes that they are. What
is read is read into one buffer, which is written to as a whole when it is made: the kernel cannot bring a page in while
it copies for a process that is being killed, and would fail the request with EIO in place of keeping it for the next
worker (kernel/hardening.py). The data of a small write is copied out of it. That of a large one stays where it is, and
the next request goes into another buffer; `give_back` makes it free again. So there are as many buffers as large
writes were in progress at once, and one, until `trim` is called once the load is over (idle.py).

The device never blocks, whatever poll said of it: a request that another reader was woken for, or that its sender took
back, may be gone. It is the same open file in the holder and in every worker; none of them relies on blocking.

native/channel.c does the same sooner. It is left aside where it was not built, or DYSK_NATIVE is "no".

Sources: linux/fuse.h; fs/fuse/dev.c, fuse_dev_do_read() and fuse_dev_do_write().
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from typing import TYPE_CHECKING, TypeAlias

from blobfuse_dysk.device.kernel.fuse import IN_HEADER, OUT_HEADER
from blobfuse_dysk.environment import uses_native
from blobfuse_dysk.store.contract import Buffer

if TYPE_CHECKING:
    from blobfuse_dysk.device.native import _channel

__all__ = ["FSYNC", "READ", "WRITE", "Channel", "Request", "open_channel"]

READ, WRITE, FSYNC = 15, 16, 20

Request: TypeAlias = tuple[int, int, int, int, Buffer | None]
"""READ, WRITE or FSYNC; the kernel's number for the request; offset and length in bytes; the data of a WRITE."""

_RANGE_IN = struct.Struct("<QQI")  # the start of struct fuse_read_in and fuse_write_in: fh, offset, size
_WRITE_OUT = struct.Struct("<II")  # struct fuse_write_out: size, padding
_DATA_AT = IN_HEADER.size + 40
_LARGE = 64 << 10  # bytes
_ROOM = 8 << 10  # bytes for headers; and the kernel takes no less than 8 KiB
_MOST_BUFFER = 512 << 20  # bytes; fs.fuse.max_pages_limit is 65535 pages at most
_KEPT = 64  # free buffers, until a load is over


class Channel:
    """The device that is open as `fd`. most: bytes of data that a write has as a rule."""

    def __init__(self, fd: int, most: int) -> None:
        self._fd = fd
        self._buffer = bytearray(most + _ROOM)
        self._free: list[bytearray] = []
        self.gone = False
        """Whether the connection has come to its end."""

    def take(self) -> Request | bytes | None:
        """The next request; None if none is there now, or ever will be (`gone`). Raises OSError."""
        while True:
            try:
                count = os.readv(self._fd, [self._buffer])
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno == errno.ENODEV:
                    count = 0
                elif error.errno == errno.EINVAL and len(self._buffer) < _MOST_BUFFER:
                    self._buffer = bytearray(2 * len(self._buffer))  # the kernel's writes are larger
                    self._free.clear()
                    continue
                elif error.errno == errno.ENOENT:  # its sender took it back
                    continue
                else:
                    raise
            if count == 0:
                self.gone = True
                return None
            return self._request(count)

    def give_back(self, data: Buffer | None) -> None:
        """Nobody looks any more at what came as the data of a write."""
        if isinstance(data, memoryview):
            buffer = data.obj
            assert isinstance(buffer, bytearray)
            data.release()
            with contextlib.suppress(BufferError):  # somebody kept a slice of it: it is not ours again
                buffer.append(buffer.pop())
                if len(self._free) < _KEPT and len(buffer) == len(self._buffer):
                    self._free.append(buffer)

    def trim(self) -> None:
        """Free the buffers that no write has now."""
        self._free.clear()

    def answer(self, unique: int, data: Buffer) -> None:
        """A READ has succeeded. An answer to a request that is gone is dropped, here and below. Raises OSError."""
        self._send([OUT_HEADER.pack(OUT_HEADER.size + len(data), 0, unique), data])

    def acknowledge(self, unique: int, size: int) -> None:
        """A WRITE has succeeded; of `size` bytes."""
        length = OUT_HEADER.size + _WRITE_OUT.size
        self._send([OUT_HEADER.pack(length, 0, unique), _WRITE_OUT.pack(size, 0)])

    def end(self, unique: int, code: int = 0) -> None:
        """An FSYNC has succeeded, or whatever it was has failed: an errno."""
        self._send([OUT_HEADER.pack(OUT_HEADER.size, -code, unique)])

    def write(self, message: bytes) -> None:
        """An answer, or a notice, that somebody else made."""
        self._send([message])

    def _request(self, count: int) -> Request | bytes:
        buffer = self._buffer
        if count >= IN_HEADER.size + _RANGE_IN.size:
            length, opcode, unique, *_ = IN_HEADER.unpack_from(buffer)
            _, offset, size = _RANGE_IN.unpack_from(buffer, IN_HEADER.size)
            if opcode == READ and length == count >= _DATA_AT:
                return READ, unique, offset, size, None
            if opcode == WRITE and length == count == _DATA_AT + size:
                data = memoryview(buffer)[_DATA_AT:count]
                if size < _LARGE:
                    return WRITE, unique, offset, size, bytes(data)
                self._buffer = self._free.pop() if self._free else bytearray(len(buffer))
                return WRITE, unique, offset, size, data
        if count >= IN_HEADER.size:
            length, opcode, unique, *_ = IN_HEADER.unpack_from(buffer)
            if opcode == FSYNC and length == count:
                return FSYNC, unique, 0, 0, None
        return bytes(memoryview(buffer)[:count])

    def _send(self, parts: list[Buffer]) -> None:
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            if error.errno == errno.ENODEV:
                self.gone = True
            elif error.errno != errno.ENOENT:
                raise


def open_channel(fd: int, most: int) -> Channel | _channel.Channel:
    """The quickest that there is on this machine."""
    os.set_blocking(fd, False)
    if uses_native():
        try:
            from blobfuse_dysk.device.native import _channel
        except ImportError:  # not built: there was no compiler
            pass
        else:
            return _channel.Channel(fd, most)
    return Channel(fd, most)
