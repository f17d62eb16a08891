"""The FUSE device: reads the kernel's requests, writes the answers.

Of each request that is about data (READ, WRITE, FSYNC) it makes a tuple; all others stay the bytes that they are. What
is read is read into one buffer, which is written to as a whole when it is made: the kernel cannot bring a page in while
it copies for a process that is being killed, and would fail the request with EIO in place of keeping it for the next
worker (kernel/hardening.py). The data of a small write is copied out of it. That of a large one stays where it is, and
the next request goes into another buffer; `give_back` makes it free again. So there are as many buffers as large
writes were in progress at once, and one, until `trim` is called once the load is over (idle.py).

The device never blocks, whatever poll said of it: a request that another reader was woken for, or that its sender took
back, may be gone. It is the same open file in the holder and in every worker; none of them relies on blocking.

Where requests are kept in memory that outlives the worker (taken.py has the theory), there are landing slots in the
place of the buffers, and `KeptChannel` in that of `Channel`. A landing slot is free when what it had is answered and
nobody looks at it any more.

native/channel.c does the same sooner. It is left aside where it was not built, or DYSK_NATIVE is "no".

Sources: linux/fuse.h; fs/fuse/dev.c, fuse_dev_do_read() and fuse_dev_do_write().
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import sys
from typing import TYPE_CHECKING, TypeAlias

from blobfuse_dysk.device.kernel.fuse import IN_HEADER, NO_ANSWER, OUT_HEADER
from blobfuse_dysk.device.worker.taken import EMPTY, Taken
from blobfuse_dysk.environment import uses_native
from blobfuse_dysk.holes import punch
from blobfuse_dysk.store.contract import Buffer

if TYPE_CHECKING:
    from blobfuse_dysk.device.native import _channel

__all__ = ["FSYNC", "READ", "ROOM", "WRITE", "AnyChannel", "Channel", "KeptChannel", "Request", "open_channel"]

READ, WRITE, FSYNC = 15, 16, 20

Request: TypeAlias = tuple[int, int, int, int, Buffer | None]
"""READ, WRITE or FSYNC; the kernel's number for the request; offset and length in bytes; the data of a WRITE."""

_RANGE_IN = struct.Struct("<QQI")  # the start of struct fuse_read_in and fuse_write_in: fh, offset, size
_WRITE_OUT = struct.Struct("<II")  # struct fuse_write_out: size, padding
_DATA_AT = IN_HEADER.size + 40
_LARGE = 64 << 10  # bytes
ROOM = 8 << 10  # bytes for headers; and the kernel takes no less than 8 KiB
_MOST_BUFFER = 512 << 20  # bytes; fs.fuse.max_pages_limit is 65535 pages at most
_KEPT = 64  # free buffers, until a load is over


class Channel:
    """The device that is open as `fd`. most: bytes of data that a write has as a rule."""

    def __init__(self, fd: int, most: int) -> None:
        self._fd = fd
        self._buffer = bytearray(most + ROOM)
        self._free: list[bytearray] = []
        self.gone = False
        """Whether the connection has come to its end."""

    @property
    def full(self) -> bool:
        """Whether no request can be taken for want of room. Answers, and data that is given back, change that."""
        return False

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
            return self._request(self._buffer, count)

    def take_up(self, at: int) -> Request | bytes:
        """The request that a worker before this one left at that place (`Taken.left`). Raises ValueError if none is."""
        raise ValueError("there is no request")

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

    def _request(self, buffer: Buffer, count: int) -> Request | bytes:
        if count >= IN_HEADER.size + _RANGE_IN.size:
            length, opcode, unique, *_ = IN_HEADER.unpack_from(buffer)
            _, offset, size = _RANGE_IN.unpack_from(buffer, IN_HEADER.size)
            if opcode == READ and length == count >= _DATA_AT:
                return READ, unique, offset, size, None
            if opcode == WRITE and length == count == _DATA_AT + size:
                data = memoryview(buffer)[_DATA_AT:count]
                if size < _LARGE:
                    return WRITE, unique, offset, size, bytes(data)
                self._hand_over()
                return WRITE, unique, offset, size, data
        if count >= IN_HEADER.size:
            length, opcode, unique, *_ = IN_HEADER.unpack_from(buffer)
            if opcode == FSYNC and length == count:
                return FSYNC, unique, 0, 0, None
        return bytes(memoryview(buffer)[:count])

    def _hand_over(self) -> None:
        """What is in the buffer stays there; the next request comes into another one."""
        self._buffer = self._free.pop() if self._free else bytearray(len(self._buffer))

    def _send(self, parts: list[Buffer]) -> None:
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            if error.errno == errno.ENODEV:
                self.gone = True
            elif error.errno != errno.ENOENT:
                raise


class KeptChannel(Channel):
    """The same, with requests that outlive the worker: each is in `taken` until it is answered."""

    def __init__(self, fd: int, taken: Taken) -> None:
        super().__init__(fd, 0)
        self._taken = taken
        *compact, self._landing_slots = taken.slabs
        self._memory = taken.map(0, self._landing_slots.start)
        self._words = memoryview(self._memory).cast("I")
        self._slabs = [(slab, [*range(slab.end - slab.size, slab.start - 1, -slab.size)]) for slab in compact]
        self._high = [slab.start for slab in compact]  # beyond it, no slot was used since the last trim
        self._landings: list[mmap.mmap | None] = [None] * self._landing_slots.slots  # mapped when they are used
        self._touched: set[int] = set()  # of them, those that are in memory as a whole
        self._held: set[int] = set()  # of them, those with a request that is not answered
        self._current: int | None = None  # of them, the one for the next request
        self._used: dict[int, int] = {}  # where a request is, by its number

    @property
    def full(self) -> bool:
        """As above: whether there is no landing slot."""
        if self._current is None:
            slots = range(self._landing_slots.slots)
            self._current = next((each for each in slots if self._is_free(each)), None)
        return self._current is None

    def take(self) -> Request | bytes | None:
        """As above; None, too, if there is no slot."""
        if self.full:
            return None
        assert self._current is not None
        landing = self._landing(self._current)
        if self._current not in self._touched:
            landing[:] = bytes(len(landing))
            self._touched.add(self._current)
        while True:
            try:
                count = os.readv(self._fd, [landing])
            except BlockingIOError:
                return None
            except OSError as error:
                landing[: len(EMPTY)] = EMPTY
                if error.errno == errno.ENODEV:
                    count = 0
                elif error.errno == errno.ENOENT:
                    continue
                else:
                    raise
            if count == 0:
                self.gone = True
                return None
            return self._keep(landing, count)

    def take_up(self, at: int) -> Request | bytes:
        """As above."""
        length, _, unique, *_ = IN_HEADER.unpack(os.pread(self._taken.fd, IN_HEADER.size, at))
        self._used[unique] = at
        if at >= self._landing_slots.start:
            index = self._index(at)
            self._held.add(index)
            return self._request(memoryview(self._landing(index)), length)
        number = next(number for number, (slab, _) in enumerate(self._slabs) if at < slab.end)
        self._slabs[number][1].remove(at)
        self._high[number] = max(self._high[number], at + self._slabs[number][0].size)
        return self._request(memoryview(self._memory)[at : at + length], length)

    def give_back(self, data: Buffer | None) -> None:
        """As above."""
        if isinstance(data, memoryview):
            assert data.obj is not None  # raises ValueError if it was given back before
            data.release()

    def trim(self) -> None:
        """Give back the memory of landing slots that are free, and of compact ones beyond those in use."""
        slots = self._landing_slots
        for index in sorted(self._touched - {self._current}):
            landing = self._landings[index]
            if landing is not None and self._is_free(index, references=1):
                landing.close()
                self._landings[index] = None
                self._touched.discard(index)
                punch(self._taken.fd, slots.start + index * slots.size, slots.size)
        for number, (slab, _) in enumerate(self._slabs):
            ends = [at + slab.size for at in self._used.values() if slab.start <= at < slab.end]
            top = -(-max(ends, default=slab.start) // mmap.PAGESIZE) * mmap.PAGESIZE
            if top < self._high[number]:
                punch(self._taken.fd, top, slab.end - top)
                self._high[number] = top

    def _is_free(self, index: int, references: int = 0) -> bool:
        """references: that the caller has. The list has one, the call another, and each view of its data has more."""
        return index not in self._held and (
            self._landings[index] is None or sys.getrefcount(self._landings[index]) == 2 + references
        )

    def _landing(self, index: int) -> mmap.mmap:
        landing = self._landings[index]
        if landing is None:
            slots = self._landing_slots
            landing = self._landings[index] = self._taken.map(slots.start + index * slots.size, slots.size)
        return landing

    def _index(self, at: int) -> int:
        return (at - self._landing_slots.start) // self._landing_slots.size

    def _keep(self, landing: mmap.mmap, count: int) -> Request | bytes:
        length, opcode, unique, *_ = IN_HEADER.unpack_from(landing) if count >= IN_HEADER.size else (0, 0, 0)
        if length != count or opcode in NO_ANSWER:
            request = landing[:count]
            landing[: len(EMPTY)] = EMPTY
            return request
        at = None if opcode == WRITE and count >= _DATA_AT + _LARGE else self._copy(landing, count)
        if at is not None:
            self._used[unique] = at
            landing[: len(EMPTY)] = EMPTY
            return self._request(memoryview(self._memory)[at : at + count], count)
        assert self._current is not None
        self._used[unique] = self._landing_slots.start + self._current * self._landing_slots.size
        self._held.add(self._current)
        self._current = None
        return self._request(memoryview(landing), count)

    def _copy(self, landing: mmap.mmap, count: int) -> int | None:
        """Into a compact slot, where it is from the last of these lines on. None: there is none."""
        for number, (slab, free) in enumerate(self._slabs):
            if count <= slab.size and free:
                at: int = free.pop()
                self._high[number] = max(self._high[number], at + slab.size)
                self._memory[at + len(EMPTY) : at + count] = landing[len(EMPTY) : count]
                self._words[at // self._words.itemsize] = count
                return at
        return None

    def _hand_over(self) -> None:
        """The request keeps its landing slot."""

    def _send(self, parts: list[Buffer]) -> None:
        super()._send(parts)
        unique = OUT_HEADER.unpack_from(parts[0])[2] if len(parts[0]) >= OUT_HEADER.size else 0
        at = self._used.pop(unique, None)
        if at is None:
            return
        if at >= self._landing_slots.start:
            index = self._index(at)
            self._landing(index)[: len(EMPTY)] = EMPTY
            self._held.discard(index)
        else:
            self._words[at // self._words.itemsize] = 0
            next(free for slab, free in self._slabs if at < slab.end).append(at)


AnyChannel: TypeAlias = "Channel | KeptChannel | _channel.Channel"


def open_channel(fd: int, most: int, taken: Taken | None = None) -> AnyChannel:
    """The quickest that there is on this machine. taken: where requests are kept, if they are."""
    os.set_blocking(fd, False)
    if uses_native():
        try:
            from blobfuse_dysk.device.native import _channel
        except ImportError:  # not built: there was no compiler
            pass
        else:
            if taken is not None:
                return _channel.Channel(fd, most, taken.map(0, taken.size), taken.fd, taken.slabs)
            return _channel.Channel(fd, most)
    return Channel(fd, most) if taken is None else KeptChannel(fd, taken)
